//! Decides which templates share an image, and the image's name.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::sync::Mutex;

use super::image::{self, Identity, TestRun};
use super::migrations::Migration;
use super::recipe::{Action, Content, Recipe, Start};
use crate::environment::Backend;
use crate::error::Result;
use crate::sync::Recovered;

impl Recipe {
    /// Returns the content from the template's image, or builds it if the template has none.
    pub(super) fn shared_or_built(
        &self,
        migrations: &[Migration],
        build: impl FnOnce() -> Result<Content>,
    ) -> Result<Content> {
        if Backend::of_engines() == Backend::File {
            return build(); // because no VFS of this crate notes that the content depends on the time
        }
        match self.identity(migrations, TestRun::current()).filter(|identity| self.is_alone_with(identity)) {
            Some(identity) => image::get_or_build(self.label(), &identity, build),
            None => build(),
        }
    }

    /// Returns the identity of the content, if everything that decides the content is known. If functions without a key
    /// decide it, it is known only within a test run.
    fn identity<'a>(&self, migrations: &[Migration], run: Option<&'a TestRun>) -> Option<Identity<'a>> {
        let mut identity = match self.start {
            Start::Parent(parent) => parent.identity(&parent.built().ok()?.ok()?.migrations, run)?,
            _ => Identity::new(),
        };
        if let Start::Database(bytes) = self.start {
            identity.add("database", bytes);
        }
        for migration in migrations {
            identity.add("migration", &migration.sql);
            identity.add("in a transaction", if migration.runs_in_transaction { "yes" } else { "no" });
        }
        identity.add("foreign keys", if self.setup().foreign_keys { "on" } else { "off" });
        if let Some(time) = self.clock {
            identity.add("clock", time);
        }
        if let Some(seed) = self.random_seed {
            identity.add("random seed", seed.to_string());
        }
        if let Some(key) = self.key {
            // The identity includes the place and the package, because templates may have the same key, even in
            // packages that share a folder.
            identity.add("key", key);
            identity.add("at", self.at.to_string());
            identity.add("package", env::var("CARGO_PKG_NAME").unwrap_or_default());
        } else if self.on_connect.is_some() || self.has_functions() {
            identity.add("at", self.at.to_string());
            identity.add_run(run?, &self.own_functions());
        }
        for step in self.steps() {
            match step.action {
                Action::Script(script) => identity.add("script", script),
                // The key or the test run stands for it.
                Action::Function(_) | Action::FunctionOfEngine(_) => identity.add("function", ""),
            }
        }
        Some(identity)
    }

    /// Returns whether no template with other functions has this identity in this process. A macro or a function may make
    /// several templates at one place with one key.
    fn is_alone_with(&self, identity: &Identity<'_>) -> bool {
        static FUNCTIONS: Mutex<BTreeMap<u128, Vec<usize>>> = Mutex::new(BTreeMap::new());
        let functions = self.functions();
        let mut all = FUNCTIONS.lock().recovered();
        *all.entry(identity.number()).or_insert_with(|| functions.clone()) == functions
    }

    /// Returns the addresses of all functions, the parents' first.
    fn functions(&self) -> Vec<usize> {
        let mut functions = self.parent().map_or_else(Vec::new, |parent| parent.functions());
        functions.extend(self.own_functions());
        functions
    }

    fn own_functions(&self) -> Vec<usize> {
        let steps = self.steps().filter_map(|step| match step.action {
            Action::Script(_) => None,
            Action::Function(build) => Some(build as usize),
            Action::FunctionOfEngine(build) => Some(build as usize),
        });
        steps.chain(self.on_connect.map(|on_connect| on_connect.function as usize)).collect()
    }

    /// Returns the readable part of an image's name: the key, or the file that the template is written in.
    fn label(&self) -> &str {
        let stem = || Path::new(self.at.file()).file_stem().and_then(|stem| stem.to_str());
        self.short_key().or_else(stem).unwrap_or("template")
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::Template;

    /// Foreign keys decide what a script does, for example whether a deletion cascades.
    #[test]
    fn templates_share_an_image_only_if_script_and_foreign_keys_are_the_same() {
        const SQL: &str = "CREATE TABLE entry (value)";
        let identity = |template: Template| template.recipe.identity(&[], None).unwrap().number();
        let first = identity(Template::sql(SQL));
        assert_eq!(identity(Template::sql(SQL).foreign_keys(true)), first, "they are on by default");
        assert_ne!(identity(Template::sql(SQL).foreign_keys(false)), first);
        assert_ne!(identity(Template::sql(SQL).seed("DELETE FROM entry")), first);
    }

    #[test]
    fn templates_of_migrations_share_an_image_only_if_the_migrations_are_the_same() {
        let identity = |scripts: &[&str]| {
            let migration =
                |sql: &&str| Migration { path: "1.sql".into(), sql: (*sql).to_owned(), runs_in_transaction: true };
            let migrations: Vec<Migration> = scripts.iter().map(migration).collect();
            Template::directory("migrations").recipe.identity(&migrations, None).unwrap().number()
        };
        let first = identity(&["CREATE TABLE a (a)", "CREATE TABLE b (b)"]);
        assert_eq!(identity(&["CREATE TABLE a (a)", "CREATE TABLE b (b)"]), first);
        assert_ne!(identity(&["CREATE TABLE b (b)", "CREATE TABLE a (a)"]), first);
        assert_ne!(identity(&["CREATE TABLE a (a)"]), first);
    }

    /// The functions are at one place in the source, as those of a macro are.
    #[test]
    fn functions_without_a_key_share_an_image_within_a_run() {
        let [create, drop, on_engine] = [
            || Template::build(|connection| Ok(connection.execute_batch("CREATE TABLE a (a)")?)),
            || Template::build(|connection| Ok(connection.execute_batch("DROP TABLE a")?)),
            || Template::build_on(|engine| Ok(engine.connect()?.execute_batch("CREATE TABLE b (b)")?)),
        ];
        let run = |id: &str| TestRun::of("target/debug/deps/it-0123", 17, SystemTime::UNIX_EPOCH, id);
        let number =
            |template: &Template, run: Option<TestRun>| Some(template.recipe.identity(&[], run.as_ref())?.number());
        for template in [create(), on_engine()] {
            assert_eq!(number(&template, None), None, "another run may have other functions");
            let first = number(&template, Some(run("1")));
            assert!(first.is_some() && first == number(&template, Some(run("1"))));
            assert_ne!(first, number(&template, Some(run("2"))));
            assert_ne!(first, number(&drop(), Some(run("1"))));
        }
        assert_eq!(number(&create().key("a"), None), number(&create().key("a"), Some(run("1"))));
    }
}
