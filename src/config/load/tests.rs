//! What may be said where, what wins, and what is refused in which words.

use std::fmt::Write;
use std::io::Write as _;

use tempfile::NamedTempFile;
use toml::Value;

use super::super::Kind;
use super::*;

/// A text that `field` takes and that is not its default, and the value it stands for.
fn another(field: &Field) -> (String, Value) {
    match (field.kind, field.name) {
        (Kind::Switch, "enabled") => ("false".into(), false.into()),
        (Kind::Switch, _) => ("true".into(), true.into()),
        (Kind::Integer { least, .. }, _) => ((least + 41).to_string(), (least + 41).into()),
        (Kind::Number { most: 1.0, .. }, _) => ("0.5".into(), 0.5.into()),
        (Kind::Number { .. }, _) => ("7.25".into(), 7.25.into()),
        (Kind::Bytes { .. }, _) => ("3MiB".into(), (3_i64 << 20).into()),
        (Kind::Choice(names), _) => (names[1].into(), names[1].into()),
        (Kind::Path, _) => ("some/where".into(), "some/where".into()),
        (_, "host") => ("::1".into(), "::1".into()),
        (_, "public_url" | "s3_endpoint" | "upstream") => {
            ("https://a.example".into(), "https://a.example".into())
        }
        (_, "database_url") => ("sqlite:a.db".into(), "sqlite:a.db".into()),
        (_, "images_url") => ("s3://bucket".into(), "s3://bucket".into()),
        (_, "cors_origins") => list(&["https://a.example", "https://b.example"]),
        (_, "allow_networks") => list(&["10.0.0.0/8", "::1/128"]),
        (_, "devices") => list(&["cpu", "cpu"]),
        (Kind::List, _) => list(&["one", "two"]),
        (Kind::Text, _) => ("text".into(), "text".into()),
    }
}

fn list(parts: &[&str]) -> (String, Value) {
    (parts.join(","), Value::Array(parts.iter().map(|part| Value::from(*part)).collect()))
}

/// What must be set together with `field` for the configuration to be one.
fn companion(field: &Field) -> Option<&'static Field> {
    let name = match field.name {
        "tls_cert" => "tls_key",
        "tls_key" => "tls_cert",
        _ => return None,
    };
    Config::fields().find(|field| field.name == name)
}

fn value_of(config: &Config, field: &Field) -> Option<Value> {
    Table::try_from(config).unwrap().get(field.section)?.get(field.name).cloned()
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str) -> Result<Loaded, ConfigError> {
    let file = file(text);
    Sources { file: Some(file.path().to_owned()), ..Sources::default() }.load()
}

fn from_flags(flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let find = |path: &str| Config::fields().find(|field| field.path() == path).unwrap();
    let flags = flags.iter().map(|(path, text)| (find(path), vec![(*text).to_owned()])).collect();
    Sources { flags, ..Sources::default() }.load()
}

#[test]
fn every_setting_can_be_set_by_flag_by_variable_and_by_file() {
    for field in Config::fields() {
        let fields: Vec<&'static Field> = [field].into_iter().chain(companion(field)).collect();
        let (text, expected) = another(field);
        assert_ne!(value_of(&Config::default(), field), Some(expected.clone()), "{}", field.path());

        let flags = fields.iter().map(|field| (*field, vec![another(field).0])).collect();
        let by_flag = Sources { flags, ..Sources::default() }.load().unwrap();
        assert_eq!(value_of(&by_flag.config, field), Some(expected.clone()), "--{}", field.long_flag());

        let variables = fields.iter().map(|field| (field.variable(), another(field).0.into())).collect();
        let by_variable = Sources { variables, ..Sources::default() }.load().unwrap();
        assert_eq!(by_variable.config, by_flag.config, "{}={text}", field.variable());
        assert!(by_variable.unknown_variables.is_empty());

        let mut lines = format!("[{}]\n", field.section);
        for field in &fields {
            writeln!(lines, "{} = {}", field.name, another(field).1).unwrap();
        }
        let by_file = from_file(&lines).unwrap();
        assert_eq!(by_file.config, by_flag.config, "{lines}");
    }
}

#[test]
fn guidance_cannot_end_before_it_starts() {
    let error = from_flags(&[("speed.guidance_start", "0.5"), ("speed.guidance_end", "0.4")]).unwrap_err();
    assert!(error.to_string().contains("speed.guidance_start"), "{error}");
    from_flags(&[("speed.guidance_start", "0.4"), ("speed.guidance_end", "0.4")]).unwrap();
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let file = file("[queue]\nmax_tasks = 5\n[server]\nport = 5\n[engine]\nmax_batch = 5\n");
    let field = Config::fields().find(|field| field.name == "max_batch").unwrap();
    let sources = Sources {
        file: Some(file.path().to_owned()),
        variables: [("DARKROOM_SERVER_PORT", "6"), ("DARKROOM_ENGINE_MAX_BATCH", "6")]
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into(),
        flags: vec![(field, vec!["7".to_owned()])],
    };
    let Loaded { config, origins, .. } = sources.load().unwrap();
    assert_eq!((config.queue.max_tasks, config.server.port, config.engine.max_batch), (5, 6, 7));
    assert_eq!(config.queue.age_after, Config::default().queue.age_after);
    assert_eq!(origins["queue.max_tasks"], Origin::File { path: file.path().to_owned(), line: 2 });
    assert_eq!(origins["server.port"], Origin::Variable("DARKROOM_SERVER_PORT".into()));
    assert_eq!(origins["engine.max_batch"], Origin::Flag("--max-batch".into()));
    assert_eq!(origins.len(), 3);
}

#[test]
fn a_variable_may_name_the_file_and_an_empty_one_says_nothing() {
    let file = file("[queue]\nmax_tasks = 5\n");
    let variables = [
        ("DARKROOM_CONFIG".to_owned(), file.path().into()),
        ("DARKROOM_QUEUE_MAX_TASKS".to_owned(), "".into()),
    ];
    let loaded = Sources { variables: variables.into(), ..Sources::default() }.load().unwrap();
    assert_eq!(loaded.config.queue.max_tasks, 5);
}

#[test]
fn an_empty_flag_takes_back_what_the_file_says() {
    let file = file("[engine]\ndefault_model = 'a'\npreload = ['a', 'b,c']\n");
    let find = |name: &str| Config::fields().find(|field| field.name == name).unwrap();
    let flags = vec![(find("default_model"), vec![String::new()]), (find("preload"), vec![String::new()])];
    let file_only = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    assert_eq!(file_only.load().unwrap().config.engine.preload, ["a", "b,c"]);
    let config = Sources { flags, ..file_only }.load().unwrap().config;
    assert_eq!((config.engine.default_model, config.engine.preload), (None, vec![]));
}

#[test]
fn lists_take_repeated_flags_and_commas() {
    let field = Config::fields().find(|field| field.name == "pin").unwrap();
    let flags = vec![(field, vec!["a, b".to_owned(), "c".to_owned()])];
    let config = Sources { flags, ..Sources::default() }.load().unwrap().config;
    assert_eq!(config.engine.pin, ["a", "b", "c"]);
}

#[test]
fn a_bad_file_is_refused_with_the_line_and_what_is_allowed() {
    let cases = [
        ("[server]\nport = 70000", "line 2: server.port: '70000' must be a whole number, 0 to 65535"),
        ("[server]\nport = 'http'", "line 2: server.port: 'http' must be a whole number"),
        ("[server]\n\nhost = 'localhost'", "line 3: server.host: 'localhost' must be an IP address"),
        ("[server]\nbody_timeout = -1", "line 2: server.body_timeout: '-1' must be a number, 0.001"),
        ("[server]\nbody_timeout = nan", "must be a number"),
        ("[server]\nbody_timeout = 1e300", "must be a number"),
        ("[engine]\nmax_batch = 0", "line 2: engine.max_batch: '0' must be a whole number, 1 or more"),
        ("[engine]\npreload = 'one'", "must be a list"),
        ("[engine]\npreload = ['one', 2]", "must be a list"),
        ("[engine]\nprecision = 'int8'", "must be auto or full or bf16 or f16 or fp8"),
        ("[engine]\nmemory_budget = '8 potatoes'", "8GiB"),
        ("[engine]\ndevices = []", "line 2: engine.devices: must name a device"),
        ("[engine]\ndevices = ['gpu']", "'gpu' must be auto, cpu or cuda:0"),
        ("[storage]\ndatabase_url = 'mysql://h/d'", "postgres://"),
        ("[log]\nformat = 3", "must be text or json"),
        ("[server]\n\ntls_cert = 'a.pem'", "line 3: server.tls_cert: needs server.tls_key"),
        ("[server]\ntls_key = 'a.pem'", "needs server.tls_cert"),
        ("[queue]\nmax_taks = 1", "line 2: there is no setting 'queue.max_taks'; did you mean max_tasks?"),
        ("[server]\nmax_tasks = 1", "it belongs to [queue]"),
        ("[servers]\nport = 1", "line 1: there is no section 'servers'; there are [server], [limits]"),
        ("port = 1", "line 1: there is no section 'port'; 'port' is a setting of [server]"),
        ("server = 1", "line 1: server: must be a section: [server]"),
        ("[server]\nport = ", "line 2: "),
        ("[server]\nport = 1\nport = 2", "line 3: "),
        ("[server]\nport = 99999999999999999999", "line 2: "),
    ];
    for (text, part) in cases {
        let message = from_file(text).unwrap_err().to_string();
        assert!(message.contains(part), "{text:?}: {message}");
        assert!(message.contains(".toml, line"), "{text:?}: {message}");
    }
}

#[test]
fn a_bad_flag_or_variable_is_named() {
    let message = from_flags(&[("server.port", "70000")]).unwrap_err().to_string();
    assert_eq!(message, "--port: server.port: '70000' must be a whole number, 0 to 65535");
    let message = from_flags(&[("server.tls_cert", "a.pem")]).unwrap_err().to_string();
    assert!(message.starts_with("--tls-cert: "), "{message}");
    let variables = [("DARKROOM_QUEUE_MAX_TASKS".to_owned(), "many".into())];
    let message =
        Sources { variables: variables.into(), ..Sources::default() }.load().unwrap_err().to_string();
    assert!(message.starts_with("DARKROOM_QUEUE_MAX_TASKS: queue.max_tasks: 'many'"), "{message}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let sources = Sources { file: Some("no/such.toml".into()), ..Sources::default() };
    assert!(sources.load().unwrap_err().to_string().contains("no/such.toml"));
}

#[test]
fn a_mistyped_variable_is_told() {
    let variables = ["DARKROOM_QUEUE_MAX_TASK", "DARKROOM_ELSE"].map(|name| (name.to_owned(), "5".into()));
    let loaded = Sources { variables: variables.into(), ..Sources::default() }.load().unwrap();
    assert_eq!(loaded.unknown_variables, ["DARKROOM_QUEUE_MAX_TASK"]);
}

#[test]
fn a_configuration_made_in_code_is_checked_the_same_way() {
    let mut config = Config::default();
    config.server.header_timeout = f64::NAN;
    assert!(config.validate().unwrap_err().to_string().contains("server.header_timeout"));
    let mut config = Config::default();
    config.engine.memory_budget = u64::MAX;
    assert!(config.validate().is_err());
}

#[test]
fn what_is_printed_can_be_loaded_and_says_the_same() {
    let flags = Config::fields().filter(|field| !field.secret).map(|field| (field, vec![another(field).0]));
    let loaded = Sources { flags: flags.collect(), ..Sources::default() }.load().unwrap();
    let text = loaded.config.to_toml(&loaded.origins).unwrap();
    assert_eq!(from_file(&text).unwrap().config, loaded.config);
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), loaded.config);
    for field in Config::fields() {
        assert!(text.contains(&format!("#{}\n", field.doc)), "{}", field.path());
    }
}

#[test]
fn secrets_are_not_printed() {
    let secrets = [
        ("outbound.webhook_secret", "hunter2"),
        ("storage.database_url", "postgres://ann:hunter2@db/darkroom"),
    ];
    let loaded = from_flags(&secrets).unwrap();
    let text = loaded.config.to_toml(&loaded.origins).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains("# webhook_secret is set, and not shown"), "{text}");
    assert!(text.contains("postgres://ann:***@db/darkroom"), "{text}");
    from_file(&text).unwrap();
}

#[test]
fn a_refusal_never_repeats_a_secret() {
    let message = from_file("[outbound]\nwebhook_secret = 271828").unwrap_err().to_string();
    assert!(!message.contains("271828"), "{message}");
    let message =
        from_flags(&[("storage.database_url", "mysql://ann:hunter2@db/d")]).unwrap_err().to_string();
    assert!(!message.contains("hunter2"), "{message}");
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "(\\[?(server|queue|log)?\\]?\n?(port|host|max_tasks)? ?=? ?.{0,12}\n){0,6}") {
        let _ = from_file(&text);
    }
}
