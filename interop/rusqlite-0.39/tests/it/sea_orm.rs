use rusqlite_fixtures::{Engine, Template};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, EntityTrait,
    QueryFilter, Set, TransactionTrait,
};
use sea_orm_migration::MigratorTrait;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use self::migrations::Migrator;
use crate::support::{BANK, balances, readme, run_test_that_panics};

// The code under test.

mod account {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "account")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub balance: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

mod migrations {
    use sea_orm_migration::prelude::*;
    use sea_orm_migration::schema::{big_integer, pk_auto};

    pub struct Migrator;

    impl MigratorTrait for Migrator {
        fn migrations() -> Vec<Box<dyn MigrationTrait>> {
            vec![Box::new(CreateAccount)]
        }
    }

    struct CreateAccount;

    impl MigrationName for CreateAccount {
        fn name(&self) -> &str {
            "m1_create_account"
        }
    }

    #[async_trait::async_trait]
    impl MigrationTrait for CreateAccount {
        async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
            let columns = Table::create().table("account").col(pk_auto("id")).col(big_integer("balance")).to_owned();
            manager.create_table(columns).await
        }
    }
}

async fn deposit(database: &DatabaseConnection, id: i64, amount: i64) -> Result<(), DbErr> {
    let transaction = database.begin().await?;
    add(&transaction, id, amount).await?;
    transaction.commit().await
}

async fn add(transaction: &impl ConnectionTrait, id: i64, amount: i64) -> Result<(), DbErr> {
    use account::{Column, Entity};
    let sum = Expr::cust_with_values("balance + ?", [amount]);
    let update = Entity::update_many().col_expr(Column::Balance, sum).filter(Column::Id.eq(id));
    update.exec(transaction).await?;
    Ok(())
}

async fn balance(database: &DatabaseConnection, id: i64) -> Result<Option<i64>, DbErr> {
    Ok(account::Entity::find_by_id(id).one(database).await?.map(|account| account.balance))
}

// Its tests.

fn options(engine: &Engine) -> ConnectOptions {
    let mut options = ConnectOptions::new(engine.sqlite_url());
    options.max_connections(4);
    options
}

async fn connect(engine: &Engine) -> DatabaseConnection {
    Database::connect(options(engine)).await.unwrap()
}

#[tokio::test]
async fn the_line_in_the_readme_opens_a_connection() {
    let engine = BANK.new_engine().unwrap();
    let database = readme!(Database::connect(engine.sqlite_url()).await).unwrap();
    deposit(&database, 1, 5).await.unwrap();
    assert_eq!(balance(&database, 1).await.unwrap(), Some(5));
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_tasks_write_through_a_pool_of_four() {
    let engine = BANK.new_engine().unwrap();
    let database = connect(&engine).await;
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let database = database.clone();
        tasks.spawn(async move {
            for _ in 0..25 {
                deposit(&database, 1 + task % 2, 1).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(balances(&engine), [100, 100]);
}

#[tokio::main(flavor = "current_thread")]
async fn panic_within_a_transaction(engine: Engine) {
    let database = connect(&engine).await;
    deposit(&database, 1, 5).await.unwrap();
    let transaction = database.begin().await.unwrap();
    add(&transaction, 1, 70).await.unwrap();
    panic!("as a failed assertion does");
}

#[test]
fn a_test_that_panics_does_not_affect_the_next() {
    let engine = BANK.new_engine().unwrap();
    run_test_that_panics(|| panic_within_a_transaction(engine));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[test]
fn a_test_that_panics_releases_a_shared_engine() {
    let engine = Engine::shared_with("file:sea-orm?mode=memory", &BANK).unwrap();
    let same = engine.clone();
    run_test_that_panics(|| panic_within_a_transaction(same));
    let sql = "UPDATE account SET balance = balance + 1 WHERE id = 2";
    engine.try_transaction(|work| work.execute(sql, [])).unwrap();
    assert_eq!(balances(&engine), [5, 1]);
}

#[tokio::test]
async fn a_template_migrates_once_for_all_tests() {
    let migrated = readme!(Template::build_on(|engine| Runtime::new()?
        .block_on(async { Ok(Migrator::up(&Database::connect(engine.sqlite_url()).await?, None).await?) })));
    let (one, other) = (migrated.new_engine().unwrap(), migrated.new_engine().unwrap());
    let database = connect(&one).await;
    assert!(Migrator::get_pending_migrations(&database).await.unwrap().is_empty());
    let before = one.snapshot().to_bytes();
    Migrator::up(&database, None).await.unwrap(); // as the application does when it starts
    assert!(one.snapshot().to_bytes() == before, "nothing was left to migrate");
    let account = account::ActiveModel { id: Set(1), balance: Set(5) };
    account.insert(&database).await.unwrap();
    assert_eq!((balances(&one), balances(&other)), (vec![5], vec![]));
}

#[tokio::test]
async fn an_open_transaction_is_invisible_to_others() {
    let engine = BANK.new_engine().unwrap();
    let database = connect(&engine).await;
    let transaction = database.begin().await.unwrap();
    add(&transaction, 1, 5).await.unwrap();
    assert_eq!(balances(&engine), [0, 0]);
    assert_eq!(balance(&database, 1).await.unwrap(), Some(0));
    transaction.commit().await.unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test]
async fn a_pool_outlives_its_engine() {
    let engine = BANK.new_engine().unwrap();
    let database = connect(&engine).await;
    drop(engine);
    deposit(&database, 1, 5).await.unwrap();
    assert_eq!(balance(&database, 1).await.unwrap(), Some(5));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[tokio::test]
async fn a_dropped_engine_can_not_be_opened() {
    let engine = BANK.new_engine().unwrap();
    let options = options(&engine);
    drop(engine);
    let error = Database::connect(options).await.unwrap_err();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
}
