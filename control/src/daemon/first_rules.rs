//! The rules to begin with: the file that `--rules` names.
//!
//! It is read before anything is touched. Whether its real servers are any that this machine can have shows only later, when the kernel's network is known; what is
//! wrong with them is said by file and line all the same.

use anyhow::Context as _;

use super::mirror::View;
use super::{Options, capabilities, home};
use crate::rules::{RestoreError, Rules};

/// Reads them; without a file there are none.
///
/// # Errors
/// Names the file and the first line that is wrong.
pub fn read(options: &Options) -> anyhow::Result<Rules> {
    let Some(path) = &options.rules else { return Ok(Rules::new(capabilities())) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read rules from {}", path.display()))?;
    let rules = Rules::restore(capabilities(), &text).with_context(|| path.display().to_string())?;
    rules.check_interfaces(&options.interfaces).with_context(|| path.display().to_string())?;
    Ok(rules)
}

/// Says if a real server in them cannot be one on this machine.
///
/// # Errors
/// Names the file and the line.
pub fn check(options: &Options, rules: &Rules, has_home: bool, view: &View) -> anyhow::Result<()> {
    for service in rules.services() {
        for server in &service.servers {
            let key = &service.config.key;
            let Err(why) = home::check(has_home, view, key, server) else { continue };
            let Some(path) = &options.rules else { return Err(why.into()) };
            let text = std::fs::read_to_string(path).unwrap_or_default();
            // Somebody may have changed the file meanwhile.
            let why: anyhow::Error = match RestoreError::of_server(&text, key, &server.key, &why) {
                Some(error) => error.into(),
                None => why.into(),
            };
            return Err(why.context(path.display().to_string()));
        }
    }
    Ok(())
}
