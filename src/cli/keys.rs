//! `darkroom keys`: makes, lists and revokes API keys in the server's database. It opens the database beside a
//! running server, which knows new and revoked keys from its next request on.

use std::io::Write;

use jiff::Timestamp;

use super::args::{CreateKeyArgs, KeysArgs, KeysCommand, ListKeysArgs, RevokeKeyArgs};
use super::error::CommandError;
use super::options::{ConfigFlags, Storage};
use super::print_result;
use crate::store::{ApiKey, StoreError, TaskStore};

pub(super) fn run(args: &KeysArgs) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(CommandError::plain)?.block_on(async {
        match &args.command {
            KeysCommand::Create(args) => create(args).await,
            KeysCommand::List(args) => list(args).await,
            KeysCommand::Revoke(args) => revoke(args).await,
        }
    })
}

async fn create(args: &CreateKeyArgs) -> Result<(), CommandError> {
    let store = open(&args.flags).await?;
    let limits = (args.requests_per_minute, args.max_tasks);
    let created = store.create_key(&args.name, args.admin, limits.0, limits.1, Timestamp::now()).await;
    store.close().await;
    let (key, secret) = created.map_err(failed)?;
    // Alone on standard output, so that a script can keep it.
    print_result(&secret)?;
    tell(&format!("the secret of the key '{}' ({}); keep it now, it is not shown again", key.name, key.id));
    Ok(())
}

async fn list(args: &ListKeysArgs) -> Result<(), CommandError> {
    let store = open(&args.flags).await?;
    let keys = store.keys().await;
    store.close().await;
    let keys = keys.map_err(failed)?;
    if keys.is_empty() {
        tell("there are no keys; `darkroom keys create NAME` makes one");
        return Ok(());
    }
    print_result(table(&keys).trim_end())
}

async fn revoke(args: &RevokeKeyArgs) -> Result<(), CommandError> {
    let store = open(&args.flags).await?;
    let revoked = store.revoke_key(&args.key, Timestamp::now()).await;
    store.close().await;
    match revoked.map_err(failed)? {
        Some(key) => print_result(&format!("revoked '{}' ({})", key.name, key.id)),
        None => Err(CommandError::failure(
            format!("there is no key '{}' that is not revoked", args.key),
            "`darkroom keys list` shows names and ids",
        )),
    }
}

async fn open(flags: &ConfigFlags<Storage>) -> Result<TaskStore, CommandError> {
    let config = flags.load()?.config;
    TaskStore::open_beside(&config.storage).await.map_err(failed)
}

/// A store that says no; its messages say what to do where there is something to do.
fn failed(error: StoreError) -> CommandError {
    match &error {
        StoreError::KeyName { .. } => CommandError::usage(error, "choose another name"),
        StoreError::Unavailable { .. } => CommandError::failure(
            error,
            "check --data-dir and --database-url: they must be the server's, and writable for you",
        ),
        _ => CommandError::plain(error),
    }
}

/// One line a key, columns aligned.
fn table(keys: &[ApiKey]) -> String {
    let limit = |limit: Option<u32>| match limit {
        None => "default".to_owned(),
        Some(0) => "none".to_owned(),
        Some(limit) => limit.to_string(),
    };
    let day =
        |time: Option<Timestamp>| time.map_or("-".to_owned(), |time| time.strftime("%Y-%m-%d").to_string());
    let mut rows =
        vec![["NAME", "ID", "ADMIN", "REQUESTS/MIN", "TASKS", "MADE", "USED", "REVOKED"].map(str::to_owned)];
    rows.extend(keys.iter().map(|key| {
        [
            key.name.clone(),
            key.id.to_string(),
            if key.admin { "yes" } else { "no" }.to_owned(),
            limit(key.requests_per_minute),
            limit(key.max_tasks),
            day(Some(key.created_at)),
            day(key.last_used_at),
            day(key.revoked_at),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A line for people, beside the results.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use crate::task::ApiKeyId;

    use super::*;

    #[test]
    fn the_table_is_aligned_and_tells_no_limit_from_the_default() {
        let key = |name: &str, limit| ApiKey {
            id: ApiKeyId::random(),
            name: name.to_owned(),
            admin: limit == Some(0),
            requests_per_minute: limit,
            max_tasks: Some(5),
            created_at: Timestamp::UNIX_EPOCH,
            last_used_at: None,
            revoked_at: None,
        };
        let text = table(&[key("a", None), key("a longer name", Some(0))]);
        let lines: Vec<&str> = text.lines().collect();
        let at = |word: &str| lines[0].find(word).unwrap();
        assert_eq!(lines[1].find("no"), Some(at("ADMIN")), "{text}");
        assert_eq!(&lines[1][at("REQUESTS")..][..7], "default", "{text}");
        assert_eq!(&lines[2][at("REQUESTS")..][..4], "none", "{text}");
        assert_eq!(&lines[2][at("MADE")..][..10], "1970-01-01", "{text}");
    }
}
