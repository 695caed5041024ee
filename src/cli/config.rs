//! `darkroom config`: the configuration that `darkroom serve` would run with, as a file for it.

use std::collections::BTreeMap;

use super::args::ConfigArgs;
use super::error::CommandError;
use super::print_result;
use crate::config::Config;

pub(super) fn run(args: &ConfigArgs) -> Result<(), CommandError> {
    let text = if args.defaults {
        Config::default().to_toml(&BTreeMap::new())
    } else {
        let loaded = args.flags.load()?;
        for name in &loaded.unknown_variables {
            tracing::warn!("the variable {name} is no setting");
        }
        loaded.config.to_toml(&loaded.origins)
    };
    print_result(text.map_err(CommandError::plain)?.trim_end())
}
