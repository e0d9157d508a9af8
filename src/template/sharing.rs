//! Decides which templates share an image, and the image's name.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::sync::Mutex;

use super::image::{self, Identity};
use super::recipe::{Action, Content, Recipe, Start, Step};
use crate::error::Result;
use crate::sync::Recovered;

impl Recipe {
    /// Returns the content from the template's image, or builds it if the template has none.
    pub(super) fn shared_or_built(&self, build: impl FnOnce() -> Result<Content>) -> Result<Content> {
        match self.identity().filter(|identity| self.is_alone_with(identity)) {
            Some(identity) => image::get_or_build(self.label(), &identity, build),
            None => build(),
        }
    }

    /// Returns the identity of the content, if everything that decides the content is known.
    fn identity(&self) -> Option<Identity> {
        let is_script = |step: &Step| matches!(step.action, Action::Script(_));
        if self.key.is_none() && (self.on_connect.is_some() || !self.steps().all(is_script)) {
            return None;
        }
        let mut identity = match self.start {
            Start::Parent(parent) => parent.identity()?,
            _ => Identity::new(),
        };
        if let Start::Database(bytes) = self.start {
            identity.add("database", bytes);
        }
        identity.add("foreign keys", if self.setup().foreign_keys { "on" } else { "off" });
        if let Some(key) = self.key {
            // The identity includes the place and the package, because templates may have the same key, even in
            // packages that share a folder.
            identity.add("key", key);
            identity.add("at", self.at.to_string());
            identity.add("package", env::var("CARGO_PKG_NAME").unwrap_or_default());
        }
        for step in self.steps() {
            match step.action {
                Action::Script(script) => identity.add("script", script),
                Action::Function(_) => identity.add("function", ""), // the key stands for it
            }
        }
        Some(identity)
    }

    /// Returns whether no template with other functions has this identity in this process. A macro or a function may make
    /// several templates at one place with one key.
    fn is_alone_with(&self, identity: &Identity) -> bool {
        static FUNCTIONS: Mutex<BTreeMap<u128, Vec<usize>>> = Mutex::new(BTreeMap::new());
        let functions = self.functions();
        let mut all = FUNCTIONS.lock().recovered();
        *all.entry(identity.number()).or_insert_with(|| functions.clone()) == functions
    }

    /// Returns the addresses of all functions that the key stands for, the parents' first.
    fn functions(&self) -> Vec<usize> {
        let mut functions = self.parent().map_or_else(Vec::new, |parent| parent.functions());
        functions.extend(self.steps().filter_map(|step| match step.action {
            Action::Script(_) => None,
            Action::Function(build) => Some(build as usize),
        }));
        functions.extend(self.on_connect.map(|on_connect| on_connect.function as usize));
        functions
    }

    /// Returns the readable part of an image's name: the key, or the file that the template is written in.
    fn label(&self) -> &str {
        let stem = || Path::new(self.at.file()).file_stem().and_then(|stem| stem.to_str());
        self.short_key().or_else(stem).unwrap_or("template")
    }
}

#[cfg(test)]
mod tests {
    use crate::Template;

    /// Foreign keys decide what a script does, for example whether a deletion cascades.
    #[test]
    fn templates_share_an_image_only_if_script_and_foreign_keys_are_the_same() {
        const SQL: &str = "CREATE TABLE entry (value)";
        let identity = |template: Template| template.recipe.identity().unwrap().number();
        let first = identity(Template::sql(SQL));
        assert_eq!(identity(Template::sql(SQL).foreign_keys(true)), first, "they are on by default");
        assert_ne!(identity(Template::sql(SQL).foreign_keys(false)), first);
        assert_ne!(identity(Template::sql(SQL).seed("DELETE FROM entry")), first);
    }
}
