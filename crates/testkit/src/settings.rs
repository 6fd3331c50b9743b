//! Settings for tests that need a few of them and the rest to be there.

use std::sync::Arc;

use penstock::config::settings::*;
use tokio::sync::watch;

/// A pipeline of this name with a sink at these brokers.
pub fn settings(name: &str, brokers: &str, shards: u32) -> Settings {
    let text = format!(
        "[pipeline]\nname = {name:?}\ndelivery = \"at-least-once\"\nshards = {shards}\nbatch_size = 256\n\
         [source]\nkeyspace = \"ks\"\ntables = [\"t\"]\nconcurrency = 4\nconsistency = \"local-quorum\"\n\
         [sink]\nbrokers = {brokers:?}\ntopic = \"{{table}}\"\ntopics.partitions = 4\ntimestamp = \"send\"\n\
         [dead_letter]\nmax = 100\n\
         [admin]\nenabled = false\nlisten = \"127.0.0.1:0\"\n\
         [orders]\nlisten = \"127.0.0.1:0\"\n\
         [health]\nstalled_after = \"60s\"\n\
         [reload]\nwatch = false\npoll_interval = \"10s\"\n",
        brokers = brokers.split(',').collect::<Vec<_>>(),
    );
    let checks = penstock::config::Checks {
        embedded: true,
        ..Default::default()
    };
    match penstock::config::parse(std::path::Path::new("test.toml"), &text, checks) {
        Ok(loaded) => Settings {
            // No component makes the system unhealthy.
            health: Health {
                critical: Vec::new(),
                ..loaded.settings.health.clone()
            },
            ..Settings::clone(&loaded.settings)
        },
        Err(invalid) => panic!("{}", invalid.render(false)),
    }
}

/// As the modules take them; the sender retunes.
pub fn live(settings: Settings) -> (watch::Sender<Arc<Settings>>, LiveSettings) {
    watch::channel(Arc::new(settings))
}
