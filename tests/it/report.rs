//! Reports: what is in the pages, and how they work in a browser.

use std::time::Duration;
use std::{fs, thread};

use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, ErrorKind, Statement, Template};

use crate::support::browser::{EVIL, assert_in_browser, assert_in_dark_browser, failed_in_browser};
use crate::support::{number, trace};

static SHOP: Template = Template::sql(
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT UNIQUE, picture BLOB);
     CREATE INDEX pictures ON item (picture) WHERE picture IS NOT NULL",
)
.seed("INSERT INTO item VALUES (1, 'tea', NULL), (2, 'coffee', x'00ff')");

/// Returns the page of a recording of `work`.
fn report_of(engine: &Engine, work: impl FnOnce(&Connection)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let recording = engine.record();
    work(&engine.connect().unwrap());
    let path = folder.path().join("report.html");
    recording.report(&path).unwrap();
    fs::read_to_string(path).unwrap()
}

fn shop() -> Engine {
    SHOP.new_engine().unwrap()
}

fn insert(connection: &Connection, name: &str) -> rusqlite::Result<usize> {
    connection.execute("INSERT INTO item (name) VALUES (?1)", [name])
}

#[test]
fn a_page_has_the_changes_the_statements_and_the_schema() {
    let page = report_of(&shop(), |shop| {
        insert(shop, "milk").unwrap();
        shop.execute("UPDATE item SET name = ?1 WHERE id = 1", ["green tea"]).unwrap();
        shop.execute_batch("DELETE FROM item WHERE id = 2; PRAGMA user_version = 3; CREATE TABLE other (a)").unwrap();
        insert(shop, "milk").unwrap_err();
    });
    let has = |part: &str| assert!(page.contains(part), "no {part} in\n{page}");
    has("<h4>item <small>1 inserted, 1 updated, 1 deleted</small></h4>");
    has("<td class=\"changed\"><del>'tea'</del> <ins>'green tea'</ins></td>");
    has(
        "<tr class=\"deleted\"><th scope=\"row\" aria-label=\"deleted\">−</th><td>2</td><td>'coffee'</td><td>x'00ff'</td></tr>",
    );
    has(
        "<tr class=\"inserted\"><th scope=\"row\" aria-label=\"inserted\">+</th><td>3</td><td>'milk'</td><td>NULL</td></tr>",
    );
    has("<pre class=\"change inserted\">+ table other: CREATE TABLE other (a)</pre>");
    has("<pre class=\"change updated\">~ user_version 0 → 3</pre>");
    has("<code>UPDATE item SET name = 'green tea' WHERE id = 1</code>");
    has("<tr class=\"write failed\"");
    has("<em>UNIQUE constraint failed: item.name</em>");
    has("<summary>Schema</summary><pre>CREATE TABLE item");
    has("CREATE INDEX pictures ON item (picture) WHERE picture IS NOT NULL;\n");
    assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count(), "no network");
}

#[test]
fn a_page_has_no_control_characters() {
    let page =
        report_of(&Engine::new(), |connection| connection.execute_batch("CREATE TABLE \"a\u{1b}b\" (c)").unwrap());
    assert!(
        page.contains("CREATE TABLE \"a\u{fffd}b\" (c)") || page.contains("CREATE TABLE &quot;a\u{fffd}b&quot; (c)"),
        "{page}"
    );
    assert!(!page.contains(|c: char| c.is_control() && c != '\n'), "{page:?}");
}

#[test]
fn an_engine_without_changes_has_a_page() {
    let page = report_of(&Engine::new(), |_| {});
    assert!(page.contains("<p>Nothing.</p>") && page.contains("<p>It is empty.</p>"), "{page}");
    assert!(!page.contains("<svg"), "there is no timeline without statements");
}

#[test]
fn many_rows_are_cut() {
    let page = report_of(&shop(), |shop| (0..250).for_each(|i| assert_eq!(insert(shop, &format!("item {i}")), Ok(1))));
    assert!(page.contains("<small>250 inserted</small>") && page.contains("… and 50 more rows."));
    assert_eq!(page.matches("<tr class=\"inserted\">").count(), 200);
    assert!(page.contains("<b>250 ×</b>"), "the statements are repeated");
}

#[test]
fn changes_of_each_kind_are_cut_and_marked() {
    static FULL: Template = Template::based_on(&SHOP).seed(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
         INSERT INTO item SELECT i + 1000, 'item ' || i, NULL FROM n;
         CREATE TABLE old (a); CREATE TABLE changed (a)",
    );
    let page = report_of(&FULL.new_engine().unwrap(), |shop| {
        shop.execute_batch(
            "UPDATE item SET name = name || '!' WHERE id BETWEEN 1001 AND 1070;
             DELETE FROM item WHERE id > 1100;
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 80)
             INSERT INTO item (id) SELECT i + 2000 FROM n;
             DROP TABLE old; ALTER TABLE changed ADD COLUMN b",
        )
        .unwrap();
    });
    let has = |part: &str| assert!(page.contains(part), "no {part} in\n{page}");
    has("<h4>item <small>80 inserted, 70 updated, 100 deleted</small></h4>");
    has("… and 50 more rows.");
    let rows = ["updated", "deleted", "inserted"].map(|what| page.matches(&format!("<tr class=\"{what}\">")).count());
    assert_eq!(rows, [70, 100, 30]);
    has("<pre class=\"change deleted\">- table old: CREATE TABLE old (a)</pre>");
    has("<pre class=\"change updated\">~ table changed: CREATE TABLE changed (a)");
}

#[test]
fn more_than_three_repeats_and_scans_of_more_than_a_hundred_rows_are_marked() {
    let scan =
        |shop: &Connection| shop.query_row("SELECT count(picture) FROM item WHERE name LIKE '%7'", [], |_| Ok(()));
    let page = report_of(&shop(), |shop| {
        shop.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 98)
             INSERT INTO item (name) SELECT 'item ' || i FROM n",
        )
        .unwrap();
        (0..3).for_each(|_| scan(shop).unwrap()); // of 100 rows
    });
    assert_eq!(page.matches("<tr class=\"read\" data-by").count(), 3, "without marks: {page}");
    assert!(!page.contains("<b>full scan") && !page.contains(" ×</b>"), "{page}");
    let page = report_of(&shop(), |shop| {
        shop.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 99)
             INSERT INTO item (name) SELECT 'item ' || i FROM n",
        )
        .unwrap();
        (0..4).for_each(|_| scan(shop).unwrap());
    });
    assert!(page.contains("<h3>Statements</h3>"));
    assert_eq!(page.matches("<b>full scan, 101 rows</b> <b>4 ×</b>").count(), 4, "{page}");
    assert_eq!(
        page.matches("<tr class=\"read scan repeated\" data-by=\"the connection opened at tests/it/report.rs:").count(),
        4
    );
    assert_eq!(page.matches(", called from tests/it/report.rs:").count(), 4, "{page}");
}

#[test]
fn scans_and_waits_are_marked() {
    let engine = shop();
    let page = report_of(&engine, |shop| {
        shop.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
             INSERT INTO item (name) SELECT 'item ' || i FROM n",
        )
        .unwrap();
        shop.query_row("SELECT count(*) FROM item WHERE name LIKE '%7'", [], |row| row.get::<_, i64>(0)).unwrap();
        let held = engine.begin(rusqlite::TransactionBehavior::Immediate).unwrap();
        let recording = engine.record();
        let waits = |statement: &Statement| statement.sql().starts_with("INSERT") && statement.duration().is_none();
        thread::scope(|scope| {
            scope.spawn(|| insert(&engine.connect().unwrap(), "milk").unwrap());
            while !recording.statements().iter().any(waits) {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(50)); // it has begun, and asks for the slot next
            drop(held);
        });
    });
    assert!(page.contains("<b>full scan, 502 rows</b>"), "{page}");
    assert!(page.contains("<tr class=\"write waited\""), "{page}");
    assert!(page.contains("<title>waits "), "{page}");
    assert_eq!(page.matches("<rect class=\"ran\"").count(), 3, "a line for each connection: {page}");
    let script = "input('show', 'waited');
        assert('waits', rows().length === 1 && sql(rows()[0]) === \"INSERT INTO item (name) VALUES ('milk')\");
        assert('the time', Number(rows()[0].children[5].textContent) > 10);";
    assert_in_browser(&page, 1600, &format!("{TOOLS} {script}"));
}

#[test]
fn a_page_says_what_it_does_not_show() {
    let engine = shop();
    let folder = tempfile::tempdir().unwrap();
    let recording = engine.record().limit(3);
    let mut own = Connection::open(engine.uri()).unwrap();
    trace(&mut own);
    assert_eq!(number(&own, "SELECT count(*) FROM item"), 2);
    let connection = engine.connect().unwrap();
    (0..5).for_each(|_| assert_eq!(number(&connection, "SELECT count(*) FROM item"), 2));
    let path = folder.path().join("report.html");
    recording.report(&path).unwrap();
    let page = fs::read_to_string(path).unwrap();
    assert!(page.contains("Not complete: connection 1 has a trace of its own (sqlite3_trace_v2), "), "{page}");
    assert!(page.contains("<p class=\"note\">Not shown: 2 older statements.</p>"), "{page}");
}

/// A bar of a timeline: its class, its title, where it begins and where it ends, in pixels.
type Bar = (String, String, f64, f64);

/// Returns the bars and the dots of a page's timeline, without its legend.
fn timeline_of(page: &str) -> (Vec<Bar>, Vec<f64>) {
    let (_, timeline) = page.split_once("<svg class=\"timeline\"").unwrap();
    let (timeline, _) = timeline.split_once("</svg>").unwrap();
    let attribute = |element: &str, name: &str| {
        let (_, rest) = element.split_once(&format!(" {name}=\""))?;
        Some(rest.split_once('"').unwrap().0.to_owned())
    };
    let pixels = |element: &str, name: &str| attribute(element, name).unwrap().parse::<f64>().unwrap();
    let (_, lanes) = timeline.split_once("<text class=\"label\"").unwrap();
    let bar = |element: &str| {
        let title = element.split_once("<title>").map_or("", |(_, rest)| rest.split_once("</title>").unwrap().0);
        let from = pixels(element, "x");
        (attribute(element, "class").unwrap(), title.to_owned(), from, from + pixels(element, "width"))
    };
    let bars = lanes.split("<rect").skip(1).map(bar).collect();
    let dots = lanes.split("<circle").skip(1).map(|element| pixels(element, "cx")).collect();
    (bars, dots)
}

#[test]
fn a_timeline_has_transactions_statements_failures_and_commits() {
    let page = report_of(&shop(), |shop| {
        // The pauses are for bars that can be told apart.
        let run = |sql: &str| {
            thread::sleep(Duration::from_millis(10));
            shop.execute_batch(sql)
        };
        run("BEGIN").unwrap();
        run("INSERT INTO item (name) VALUES ('milk')").unwrap();
        run("COMMIT").unwrap();
        run("INSERT INTO item (name) VALUES ('milk')").unwrap_err();
        run("SELECT count(*) FROM item").unwrap();
        run("COMMIT").unwrap_err();
        run("BEGIN").unwrap();
        run("ROLLBACK").unwrap();
        run("BEGIN").unwrap();
        run("END").unwrap();
    });
    let (bars, dots) = timeline_of(&page);
    let expected = [
        ("ran", ""),
        ("held", "transaction 1, "),
        ("held", "transaction 2, "),
        ("held", "transaction 3, "),
        ("wrote", "INSERT INTO item (name) VALUES ('milk') -- 1 row changed"),
        ("failed", "INSERT INTO item (name) VALUES ('milk') -- failed: UNIQUE"),
        ("read", "SELECT count(*) FROM item -- 1 row, "),
        ("failed", "COMMIT -- failed: "),
    ];
    assert_eq!(bars.len(), expected.len(), "{bars:?}");
    for ((class, title, ..), (expected_class, expected_title)) in bars.iter().zip(expected) {
        assert!(class == expected_class && title.starts_with(expected_title), "{class} {title}");
    }
    let ends: Vec<f64> = bars.iter().map(|(.., to)| *to).collect();
    assert_eq!(dots.len(), 2, "the commits: {page}");
    assert!((dots[0] - ends[1]).abs() < 1.5 && (dots[1] - ends[3]).abs() < 1.5, "{dots:?} {bars:?}");
    assert!((ends[0] - ends[3]).abs() < 1.5, "the connection was used until its last commit: {bars:?}");
    let from = |index: usize| bars[index].2;
    assert!((from(0) - from(1)).abs() < 0.2, "{bars:?}");
    assert!(from(1) < from(4) && ends[4] < ends[1] && ends[1] < from(5) && from(5) < from(6), "{bars:?}");
    assert!(page.contains("report::a_timeline_has_tran…") || page.contains(">1 · report::a_timeline_ha"), "{page}");
}

#[test]
fn a_connection_that_several_threads_use_is_one_lane() {
    let engine = shop();
    let page = report_of(&engine, |shop| insert(shop, "milk").map(drop).unwrap());
    assert!(!page.contains("several threads"), "{page}");
    let page = report_of(&engine, |_| {
        let shop = Connection::open(engine.uri()).unwrap();
        insert(&shop, "bread").unwrap();
        thread::spawn(move || insert(&shop, "salt").unwrap()).join().unwrap();
    });
    assert!(page.contains(">1 · several threads<") && !page.contains(">2 · "), "{page}");
}

#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = shop().record().report(folder.path().join("no folder").join("report.html")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().starts_with("can't write the report `"), "{error}");
}

/// Functions for scripts.
const TOOLS: &str = "
    const $ = (selector) => document.querySelector(selector);
    const rows = () => [...document.querySelectorAll('.rows tbody tr:not(.gap)')];
    const sql = (row) => row.children[1].textContent;
    const count = () => $('.filter output').textContent;
    const input = (name, value) => { const field = $('.filter').elements[name]; field.value = value;
        field.dispatchEvent(new Event('input', { bubbles: true })); };
    const key = (name) => $('.rows').dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true }));
    // Without a window, the browser draws no frames, and reports no scrolling.
    const scrolled = () => $('.rows').dispatchEvent(new Event('scroll'));
";

#[test]
fn a_browser_shows_everything_as_text() {
    let engine = shop();
    let page = report_of(&engine, |shop| {
        let read = || number(&engine.connect().unwrap(), "SELECT count(*) FROM item");
        thread::scope(|scope| {
            thread::Builder::new().name(EVIL.to_owned()).spawn_scoped(scope, read).unwrap().join().unwrap()
        });
        insert(shop, EVIL).unwrap();
        insert(shop, EVIL).unwrap_err();
        shop.execute_batch(&format!("CREATE TABLE \"{EVIL}\" (a)")).unwrap();
        shop.execute_batch(&format!("SELECT \"{EVIL}\" FROM item")).ok();
    });
    let script = format!(
        "{TOOLS} assert('title', document.title.startsWith('Recording of engine'));
         assert('images', document.images.length === 0);
         assert('the row', [...document.querySelectorAll('td')].some((cell) => cell.textContent.includes({EVIL:?})));
         assert('the thread', [...document.querySelectorAll('svg text title')].some((title) => title.textContent.includes({EVIL:?})));
         assert('the statement', sql(rows()[1]).includes('</template></script><script>document.title'));
         assert('the schema', $('details pre').textContent.includes({EVIL:?}));"
    );
    assert_in_browser(&page, 1600, &script.replace("</", "<\\/"));
}

#[test]
fn statements_are_filtered_sorted_and_selected() {
    let page = report_of(&shop(), |shop| {
        for name in ["zucchini", "apple", "milk"] {
            insert(shop, name).unwrap();
        }
        insert(shop, "milk").unwrap_err();
        shop.execute_batch("BEGIN; COMMIT").unwrap();
        shop.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
    });
    assert_in_browser(
        &page,
        1600,
        &format!(
            "{TOOLS}
            assert('all', rows().length === 7 && count() === '7 of 7 statements');
            input('show', 'read');
            assert('reads', rows().length === 1 && sql(rows()[0]) === 'SELECT count(*) FROM item');
            input('show', 'write');
            assert('writes', rows().length === 4 && rows().every((row) => sql(row).startsWith('INSERT')));
            input('show', 'failed');
            assert('failed', count() === '1 of 7 statements' && sql(rows()[0]).includes(' UNIQUE constraint failed: item.name'));
            input('show', 'transaction');
            assert('transactions', rows().map(sql).join() === 'BEGIN,COMMIT');
            input('show', 'repeated');
            assert('repeated', rows().length === 4);
            input('show', '');
            input('text', 'APPLE');
            assert('text', rows().length === 1 && sql(rows()[0]).includes('apple'));
            input('text', '');
            const heading = document.querySelectorAll('.rows th')[1];
            heading.querySelector('button').click();
            assert('sorted', heading.ariaSort === 'ascending' && sql(rows()[0]) === 'BEGIN' && sql(rows()[2]).includes('apple'));
            heading.querySelector('button').click();
            assert('descending', heading.ariaSort === 'descending' && sql(rows()[0]).startsWith('SELECT'));
            document.querySelectorAll('.rows th')[4].querySelector('button').click();
            const took = rows().map((row) => Number(row.children[4].textContent));
            assert('by time', heading.ariaSort === null && took.every((time, at) => at === 0 || took[at - 1] <= time));
            document.querySelectorAll('.rows th')[0].querySelector('button').click();
            key('ArrowDown');
            const selected = () => $('.rows [aria-selected=true]');
            assert('the first', sql(selected()).includes('zucchini') && $('.selected').textContent.includes('zucchini'));
            assert('who', $('.selected').textContent.includes('the connection opened at tests/it/report.rs:'));
            key('ArrowDown'); key('ArrowDown'); key('ArrowUp');
            assert('the second', sql(selected()).includes('apple'));
            $('.rows').dispatchEvent(new KeyboardEvent('keydown', {{ key: 'ArrowDown', ctrlKey: true, bubbles: true }}));
            assert('not with a modifier', sql(selected()).includes('apple'));
            key('End');
            assert('the last', sql(selected()) === 'SELECT count(*) FROM item');
            key('Home');
            assert('the first again', sql(selected()).includes('zucchini'));
            rows()[2].click();
            assert('by click', sql(selected()).includes('milk'));
            const controls = document.querySelectorAll('.scroll, input, select, button, summary');
            assert(`${{controls.length}} controls`, controls.length > 10);
            for (const part of controls) {{
                part.focus();
                assert(`${{part.tagName}} ${{part.className}} has the focus`, document.activeElement === part && part.tabIndex === 0);
            }}"
        ),
    );
}

#[test]
fn ten_thousand_statements_are_few_rows_of_the_page() {
    let page = report_of(&Engine::new(), |connection| {
        connection.execute_batch("CREATE TABLE t (a)").unwrap();
        let mut insert = connection.prepare("INSERT INTO t VALUES (?1)").unwrap();
        (2..10_000).for_each(|i| assert_eq!(insert.execute([i]).unwrap(), 1));
        connection.execute("INSERT\n  INTO t\n  VALUES (?1)", [1]).unwrap(); // a row of the table has one line
    });
    assert_in_browser(
        &page,
        1600,
        &format!(
            "{TOOLS}
            assert('count', count() === '10000 of 10000 statements');
            assert('few', rows().length < 100);
            assert('one line each', rows().every((row) => row.getBoundingClientRect().height === 30));
            assert('numbered', $('.rows table').ariaRowCount === '10001' && rows()[0].ariaRowIndex === '2');
            const scroll = $('.rows');
            assert('height', scroll.scrollHeight > 300000);
            scroll.scrollTop = 5000 * 30; scrolled();
            const numbers = rows().map((row) => Number(/\\((\\d+)\\)/.exec(sql(row))[1]));
            assert('the middle: ' + numbers[0] + ' to ' + numbers.at(-1), numbers[0] < 5000 && numbers.at(-1) > 5000);
            assert('in order', numbers.every((number, at) => at === 0 || number === numbers[at - 1] + 1));
            assert('few after scrolling', rows().length < 100);
            key('End'); scrolled();
            assert('the last', sql(rows().at(-1)).includes('VALUES (1)'));
            assert('one line for three', rows().at(-1).getBoundingClientRect().height === 30);
            const box = rows().at(-1).getBoundingClientRect(); const frame = scroll.getBoundingClientRect();
            assert('visible', box.top >= frame.top && box.bottom <= frame.bottom + 1);
            input('text', '(77'); scrolled();
            assert('filtered', count() === '111 of 10000 statements' && scroll.scrollTop === 0);
            assert('marks', document.querySelectorAll('.timeline rect').length < 2000);"
        ),
    );
}

#[test]
fn full_scans_are_filtered() {
    let page = report_of(&Engine::new(), |connection| {
        connection.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b)").unwrap();
        (0..150).for_each(|i| assert_eq!(connection.execute("INSERT INTO t (b) VALUES (?1)", [i]), Ok(1)));
        for sql in ["SELECT count(*) FROM t WHERE b = 7", "SELECT b FROM t WHERE a = 7"] {
            connection.query_row(sql, [], |_| Ok(())).unwrap();
        }
    });
    let script = "input('show', 'scan');
        assert('scans', count() === '1 of 153 statements' && rows().length === 1);
        assert(`the scan: ${sql(rows()[0])}`, sql(rows()[0]) === 'SELECT count(*) FROM t WHERE b = 7 full scan, 150 rows');";
    assert_in_browser(&page, 1600, &format!("{TOOLS} {script}"));
}

#[test]
fn the_page_keys_move_by_the_rows_that_are_visible() {
    let page = report_of(&Engine::new(), |connection| {
        (0..100).for_each(|i| connection.query_row("SELECT ?1", [i], |_| Ok(())).unwrap());
    });
    let script = "
        const selected = () => { const row = $('.rows [aria-selected=true]'); return row && row.ariaRowIndex - 2; };
        const isVisible = () => {
            const box = $('.rows [aria-selected=true]').getBoundingClientRect(); const frame = $('.rows').getBoundingClientRect();
            return box.top >= frame.top + $('.rows th').offsetHeight - 1 && box.bottom <= frame.bottom + 1;
        };
        const presses = (name, expected) => {
            key(name); scrolled();
            assert(`${name} selects ${selected()}, not ${expected}`, selected() === expected);
            assert(`${name} shows ${selected()}`, isVisible());
        };
        const visible = Math.floor(($('.rows').clientHeight - $('.rows th').offsetHeight) / 30);
        assert(`${visible} are visible`, visible > 10 && visible < 30);
        presses('Home', 0);
        key('PageDown'); scrolled();
        const page = selected();
        assert(`a page of ${page} of ${visible}`, page <= visible && page >= visible - 2 && isVisible());
        presses('PageDown', 2 * page);
        presses('PageUp', page);
        presses('PageUp', 0);
        presses('PageUp', 0);
        presses('End', 99);
        presses('PageDown', 99);
        presses('PageUp', 99 - page);";
    assert_in_browser(&page, 1600, &format!("{TOOLS} {script}"));
}

#[test]
fn a_page_is_dark_for_users_who_prefer_that() {
    let page = report_of(&shop(), |shop| {
        insert(shop, "milk").unwrap();
        insert(shop, "milk").unwrap_err();
        shop.execute("UPDATE item SET name = 'green tea' WHERE id = 1", []).unwrap();
        shop.execute("DELETE FROM item WHERE id = 2", []).unwrap();
    });
    // WCAG's relative luminance, and its contrast, which has to be at least 4.5.
    let script = "
        const luminance = (color) => {
            const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
            const [red, green, blue] = parts.map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
            return .2126 * red + .7152 * green + .0722 * blue;
        };
        const isTransparent = (color) => color === 'rgba(0, 0, 0, 0)';
        const background = (part) => {
            const color = getComputedStyle(part).backgroundColor;
            return isTransparent(color) ? background(part.parentElement) : color;
        };
        const contrast = (part) => {
            const [low, high] = [getComputedStyle(part).color, background(part)].map(luminance).sort((a, b) => a - b);
            return (high + .05) / (low + .05);
        };
        const isDark = matchMedia('(prefers-color-scheme: dark)').matches;
        assert(`the browser prefers dark: ${isDark}`, isDark === DARK);
        const [page, text] = [background(document.body), getComputedStyle(document.body).color].map(luminance);
        assert(`the page has ${page}, the text ${text}`, DARK ? page < .05 && text > .7 : page > .9 && text < .05);
        const texts = 'h1, h2, h3, h4, h4 small, p, pre, th, td, td del, td ins, code, em, b, label, input, select, output, summary';
        for (const part of document.querySelectorAll(texts)) {
            const label = `${part.tagName} ${part.parentElement.className}: ${contrast(part)}`;
            assert(label, part.matches('.gap *') || contrast(part) >= 4.5);
        }";
    assert_in_dark_browser(&page, 1600, &script.replace("DARK", "true"));
    assert_in_browser(&page, 1600, &script.replace("DARK", "false"));
}

#[test]
fn a_page_fits_a_narrow_and_a_wide_window() {
    let page = report_of(&shop(), |shop| {
        insert(shop, &"long ".repeat(100)).unwrap();
        shop.execute_batch(&format!(
            "CREATE TABLE wide ({})",
            (0..60).map(|i| format!("column_{i}")).collect::<Vec<_>>().join(", ")
        ))
        .unwrap();
        shop.execute_batch("INSERT INTO wide DEFAULT VALUES").unwrap();
    });
    for width in [400, 1600] {
        let fits = "const page = document.documentElement;
            assert(`the window has ${innerWidth}`, innerWidth === WIDTH);
            assert(`${page.scrollWidth} of ${innerWidth}`, page.scrollWidth <= innerWidth);
            for (const part of document.querySelectorAll('h1, h2, h3, .scroll, .filter, pre')) {
                assert(`${part.className || part.tagName} ends at ${part.getBoundingClientRect().right}`, part.getBoundingClientRect().right <= innerWidth);
            }";
        assert_in_browser(&page, width, &format!("{TOOLS} {}", fits.replace("WIDTH", &width.to_string())));
    }
}

/// The check of this file's own means: it notices a failure, an error of a script, and one of the console.
#[test]
fn failures_in_a_browser_are_noticed() {
    let page = report_of(&shop(), |_| {});
    let broken = "assert('asserted', false); console.error('logged'); setTimeout(() => nothing.at.all, 0);
        await new Promise((done) => setTimeout(done, 50)); throw new Error('thrown');";
    if let Some(failed) = failed_in_browser(&page, 1600, broken) {
        let expected = ["asserted", "console: logged", "error: Uncaught ReferenceError", "thrown: Error: thrown"];
        assert_eq!(failed.len(), expected.len(), "{failed:?}");
        assert!(failed.iter().zip(expected).all(|(failed, expected)| failed.starts_with(expected)), "{failed:?}");
    }
}
