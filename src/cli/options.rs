//! The configuration's settings as flags: every field of `config` is one, by its place (`--queue-max-tasks`), and
//! the most used have a short name too. Built from the declared fields, so that none can be forgotten.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::error::CommandError;
use crate::config::{Config, ConfigError, Field, Kind, Loaded, Sources, darkroom_variables};

const FILE: &str = "config";

/// Which settings are flags of a command.
pub(super) trait Choice {
    /// Whether this one is.
    fn includes(field: &Field) -> bool;
}

/// All of them.
#[derive(Debug)]
pub(super) struct All;

/// Where tasks and pictures are kept.
#[derive(Debug)]
pub(super) struct Storage;

/// Where a server listens.
#[derive(Debug)]
pub(super) struct Listening;

impl Choice for All {
    fn includes(_: &Field) -> bool {
        true
    }
}

impl Choice for Storage {
    fn includes(field: &Field) -> bool {
        field.section == "storage" && matches!(field.name, "data_dir" | "database_url")
    }
}

impl Choice for Listening {
    fn includes(field: &Field) -> bool {
        field.section == "server" && matches!(field.name, "host" | "port" | "tls_cert" | "tls_key")
    }
}

/// `--config` and a flag for each chosen setting.
#[derive(Debug)]
pub(super) struct ConfigFlags<C> {
    file: Option<PathBuf>,
    flags: Vec<(&'static Field, Vec<String>)>,
    choice: PhantomData<C>,
}

impl<C: Choice> ConfigFlags<C> {
    /// The configuration from these flags, the environment, the file and the defaults.
    pub(super) fn load(&self) -> Result<Loaded, CommandError> {
        let sources =
            Sources { file: self.file.clone(), variables: darkroom_variables(), flags: self.flags.clone() };
        sources.load().map_err(|error| match &error {
            ConfigError::Unreadable { .. } => CommandError::usage(
                error,
                "name a file that is there; `darkroom config --defaults` writes one",
            ),
            ConfigError::Syntax { .. } => {
                CommandError::usage(error, "the file is TOML: [section] lines, then name = value")
            }
            _ => CommandError::usage(
                error,
                "`darkroom help serve` and `darkroom config` explain every setting",
            ),
        })
    }
}

/// A setting's names for clap, which wants them to live as long as the program.
struct Named {
    field: &'static Field,
    path: String,
    long: String,
    heading: String,
    help: String,
}

static NAMED: LazyLock<Vec<Named>> = LazyLock::new(|| {
    let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
    let named = |field: &'static Field, heading: &str| {
        let mut help = field.doc.trim().trim_end_matches('.').to_owned();
        let default = defaults.get(field.section).and_then(|section| section.get(field.name));
        if let Some(default) = default.map(ToString::to_string).filter(|text| text != "[]") {
            help.push_str(&format!(" [default: {}]", default.trim_matches('"')));
        }
        help.push_str(&format!(" [env: {}]", field.variable()));
        Named { field, path: field.path(), long: field.long_flag(), heading: heading.to_owned(), help }
    };
    let mut all = Vec::new();
    for section in &Config::SECTIONS {
        let heading = format!("[{}] {}", section.name, section.doc.trim().trim_end_matches('.'));
        all.extend(section.fields.iter().map(|field| named(field, &heading)));
    }
    all
});

/// The settings of a command.
fn chosen<C: Choice>() -> impl Iterator<Item = &'static Named> {
    NAMED.iter().filter(|named| C::includes(named.field))
}

fn arg(named: &'static Named) -> Arg {
    let Named { field, path, long, heading, help } = named;
    let arg = Arg::new(path.as_str())
        .help(help.as_str())
        .help_heading(heading.as_str())
        .value_name(field.placeholder())
        .action(ArgAction::Append)
        // What a value may be, `config` says, the same for flags as for files.
        .allow_hyphen_values(matches!(
            field.kind,
            Kind::Integer { .. } | Kind::Number { .. } | Kind::Bytes { .. }
        ));
    let arg = match field.short {
        Some(short) => arg.long(short).visible_alias(long.as_str()),
        // `-h` shows what people set; `--help` shows all.
        None => arg.long(long.as_str()).hide_short_help(true),
    };
    match field.kind {
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg.num_args(1),
    }
}

impl<C: Choice> Args for ConfigFlags<C> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long(FILE)
            .value_name("FILE.toml")
            .help("Read settings from this file; flags and variables win over it [env: DARKROOM_CONFIG]")
            .value_parser(clap::value_parser!(PathBuf));
        command.arg(file).args(chosen::<C>().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<C: Choice> FromArgMatches for ConfigFlags<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |named: &'static Named| {
            let texts = matches.get_many::<String>(&named.path)?;
            Some((named.field, texts.cloned().collect()))
        };
        let file = matches.get_one::<PathBuf>(FILE).cloned();
        Ok(Self { file, flags: chosen::<C>().filter_map(given).collect(), choice: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        flags: ConfigFlags<All>,
    }

    fn given(args: &[&str]) -> Vec<(String, Vec<String>)> {
        let args = ["program"].iter().chain(args);
        let flags = Program::try_parse_from(args).unwrap().flags.flags;
        flags.into_iter().map(|(field, texts)| (field.path(), texts)).collect()
    }

    #[test]
    fn every_setting_is_a_flag_and_short_names_are_the_same_flag() {
        for field in Config::fields() {
            for flag in
                [Some(format!("--{}", field.long_flag())), field.short.map(|short| format!("--{short}"))]
            {
                let Some(flag) = flag else { continue };
                let given = given(&[&format!("{flag}=7")]);
                assert_eq!(given, [(field.path(), vec!["7".to_owned()])], "{flag}");
            }
        }
    }

    #[test]
    fn a_switch_needs_no_value_and_lists_may_be_repeated() {
        let path =
            |path: &str, texts: &[&str]| (path.to_owned(), texts.iter().map(|t| (*t).to_owned()).collect());
        assert_eq!(given(&["--auth-allow-anonymous"]), [path("auth.allow_anonymous", &["true"])]);
        assert_eq!(given(&["--auth-allow-anonymous=false"]), [path("auth.allow_anonymous", &["false"])]);
        assert_eq!(given(&["--pin", "a", "--pin", "b"]), [path("engine.pin", &["a", "b"])]);
        assert_eq!(given(&["--server-body-timeout", "-1"]), [path("server.body_timeout", &["-1"])]);
    }
}
