//! What is deployed: the configuration in the image and in the ConfigMap is valid, mounts and commands name what is
//! there, images are pinned, and the files keep their schemas: the compose file that of the compose specification
//! (`tests/deploy/compose-spec.json`, of June 2026, <https://github.com/compose-spec/compose-spec>), the Kubernetes one
//! those that `kubernetes-validate` knows, where it and a YAML reader (Python's) are; alerts and queries are judged by
//! `promtool`, where it is had.

use std::path::Path;
use std::process::Command;

use penstock::admin::metrics::table;
use penstock::config::settings::Instances;
use penstock::config::{self, Checks, Inputs, Loaded};
use serde_json::Value;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Loads a configuration as it will be where it is mounted, with these variables set there.
fn load(text: &str, environment: &[(&str, &str)]) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("plugin.wasm"), "stands for it").unwrap();
    std::fs::write(at("token"), "tiger").unwrap();
    let text = text
        .replace("/etc/penstock/plugins/outbox_router.wasm", "plugin.wasm")
        .replace("/etc/penstock/secrets/admin-token", "token");
    std::fs::write(at("pipeline.toml"), text).unwrap();
    let own = |(k, v): &(&str, &str)| ((*k).into(), (*v).into());
    let inputs = Inputs {
        files: vec![at("pipeline.toml")],
        environment: environment.iter().map(own).collect(),
        set: Vec::new(),
    };
    // The image has no stand-ins.
    let checks = Checks {
        embedded: false,
        ..Checks::default()
    };
    config::load(&inputs, checks).unwrap_or_else(|e| panic!("{}", e.render(false)))
}

/// `key: value` lines of a YAML file below a line, as deep as it or deeper, without comments.
fn below<'a>(yaml: &'a str, head: &str) -> Vec<&'a str> {
    let indent = |l: &str| l.len() - l.trim_start().len();
    let mut lines = yaml.lines().skip_while(|l| l.trim() != head);
    let first = lines.next().unwrap_or_else(|| panic!("no {head:?}"));
    lines
        .take_while(|l| l.trim().is_empty() || indent(l) > indent(first))
        .filter(|l| !l.trim_start().starts_with('#'))
        .collect()
}

#[test]
fn the_image_and_compose_run_with_a_valid_configuration() {
    let shipped = read("deploy/docker/pipeline.toml");
    let loaded = load(&shipped, &[]);
    assert!(loaded.settings.admin.listen.ip().is_loopback());
    let compose = read("docker-compose.yml");
    let service = below(&compose, "penstock:");
    let variables: Vec<(&str, &str)> = service
        .iter()
        .filter_map(|l| l.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("PENSTOCK_") && *name != "PENSTOCK_CONFIG")
        .map(|(name, value)| match value.strip_prefix("${") {
            // ${NAME:-default}
            Some(rest) => (name, rest.split_once(":-").unwrap().1.trim_end_matches('}')),
            None => (name, value),
        })
        .collect();
    let loaded = load(&shipped, &variables);
    // A port that is published has to be listened on beyond the container's loopback.
    let settings = &loaded.settings;
    for listen in [settings.admin.listen, settings.orders.listen] {
        assert!(listen.ip().is_unspecified(), "{listen}");
        let published = format!("\"127.0.0.1:{0}:{0}\"", listen.port());
        assert!(
            service.iter().any(|l| l.contains(&published)),
            "{published}"
        );
    }
    assert!(settings.admin.token.is_some());
    assert!(service.iter().any(|l| l.trim() == "read_only: true"));
    assert!(Path::new("deploy/docker/pipeline.toml").is_file());
    assert!(
        service
            .iter()
            .any(|l| l.contains("./deploy/docker:/etc/penstock/mounted:ro"))
    );
}

/// Where `cargo cyclonedx` is; `.ci/run` and the image's build see that it is.
#[test]
fn the_image_says_what_it_is_made_of() {
    let here = Command::new("cargo")
        .args(["cyclonedx", "--version"])
        .output();
    if !here.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no cargo-cyclonedx here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // What is built is beside the point here.
    let built = Command::new("sh")
        .arg("deploy/docker/build-layout.sh")
        .arg(&out)
        .env("PENSTOCK_BINARY", "Cargo.toml")
        .env("PENSTOCK_PLUGIN", "Cargo.toml")
        .env("CARGO_TARGET_DIR", folder.path())
        .output()
        .unwrap();
    let said = [built.stdout, built.stderr].concat();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&said));
    let bill = std::fs::read(out.join("usr/share/doc/penstock/sbom.cdx.json")).unwrap();
    let bill: Value = serde_json::from_slice(&bill).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["name"], "penstock");
    let components = bill["components"].as_array().unwrap();
    let of = |name: &str| components.iter().find(|c| c["name"] == name);
    let locked: toml::Table = toml::from_str(&read("Cargo.lock")).unwrap();
    let locked = locked["package"].as_array().unwrap();
    for name in ["rdkafka-sys", "scylla", "wasmtime", "openssl-src", "tokio"] {
        let found = of(name).unwrap_or_else(|| panic!("{name} is missing"));
        let version = found["version"].as_str().unwrap();
        let is_locked = |p: &toml::Value| {
            p["name"].as_str() == Some(name) && p["version"].as_str() == Some(version)
        };
        assert!(locked.iter().any(is_locked), "{name} {version}");
        assert!(found["licenses"].is_array(), "{found}");
    }
    for stand_in in ["scylla-double", "redpanda-double", "testkit"] {
        assert!(of(stand_in).is_none(), "{stand_in} is in the image");
    }
    println!("{} components", components.len());
}

#[test]
fn every_image_is_pinned() {
    let compose = read("docker-compose.yml");
    let images: Vec<&str> = compose
        .lines()
        .filter_map(|l| l.trim().strip_prefix("image: "))
        .collect();
    assert!(images.len() >= 5, "{images:?}");
    for image in images {
        let tag = image
            .rsplit('/')
            .next()
            .and_then(|name| name.split_once(':'));
        let tag = tag.unwrap_or_else(|| panic!("{image} has no tag")).1;
        let version = tag.trim_start_matches('v');
        assert!(
            version.split('.').count() == 3 && version.starts_with(|c: char| c.is_ascii_digit()),
            "{image}"
        );
    }
    let dockerfile = read("Dockerfile");
    let toolchain: toml::Table = toml::from_str(&read("rust-toolchain.toml")).unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap();
    assert!(
        dockerfile.contains(&format!("FROM rust:{channel}-")),
        "the image is built by another toolchain"
    );
    assert!(dockerfile.contains("sh deploy/docker/build-layout.sh /out"));
    assert!(dockerfile.contains(":nonroot"));
}

#[test]
fn the_configmap_is_valid_and_mounted_where_it_is_read() {
    let yaml = read("deploy/kubernetes/penstock.yaml");
    let text: Vec<&str> = below(&yaml, "pipeline.toml: |")
        .iter()
        .map(|l| l.strip_prefix("    ").unwrap_or(l))
        .collect();
    let loaded = load(&text.join("\n"), &[]);
    assert!(
        loaded.settings.admin.listen.ip().is_unspecified() && loaded.settings.admin.token.is_some()
    );
    let port = loaded.settings.admin.listen.port();
    assert!(yaml.contains(&format!("containerPort: {port}")));
    assert!(yaml.contains(r#"args: ["run", "--config", "/etc/penstock/config/pipeline.toml"]"#));
    assert!(yaml.contains("{ name: config, mountPath: /etc/penstock/config, readOnly: true }"));
    assert!(yaml.contains("configMap: { name: penstock }") && !yaml.contains("subPath:"));
    assert!(yaml.contains("{ name: secrets, mountPath: /etc/penstock/secrets, readOnly: true }"));
    for hardened in [
        "runAsNonRoot: true",
        "runAsUser: 65532",
        "readOnlyRootFilesystem: true",
    ] {
        assert!(yaml.contains(hardened), "{hardened}");
    }
    // More than one replica is for those that share.
    assert_eq!(loaded.settings.pipeline.instances, Instances::Shared);
    let replicas = yaml
        .lines()
        .find_map(|l| l.trim().strip_prefix("replicas: "));
    let replicas: u32 = replicas.unwrap().parse().unwrap();
    assert!(replicas > 1 && replicas <= loaded.settings.pipeline.shards.get());
    assert!(yaml.contains("maxUnavailable: 0"));
    // The grace period covers the drain.
    let grace = yaml
        .lines()
        .find_map(|l| l.trim().strip_prefix("terminationGracePeriodSeconds: "));
    let grace: u64 = grace.unwrap().parse().unwrap();
    assert!(grace > loaded.settings.shutdown.timeout.as_secs());
}

/// A YAML file's documents as JSON, by Python's reader; `None`, and a line on stderr, where there is none.
fn documents(path: &str) -> Option<Vec<serde_json::Value>> {
    const READ: &str =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let here = Command::new("python3").args(["-c", "import yaml"]).output();
    if !here.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no python3 with yaml here, so {path} is not read as YAML");
        return None;
    }
    let read = Command::new("python3").args(["-c", READ, path]).output();
    let read = read.expect("it ran a moment ago");
    let said = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "{path}: {said}");
    Some(serde_json::from_slice(&read.stdout).expect("JSON"))
}

#[test]
fn the_compose_file_keeps_its_schema_and_mounts_what_is_there() {
    let schema = serde_json::from_str(&read("tests/deploy/compose-spec.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let Some(documents) = documents("docker-compose.yml") else {
        return;
    };
    let [compose] = &documents[..] else {
        panic!("one document")
    };
    let wrong: Vec<String> = validator
        .iter_errors(compose)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The schema sees what is wrong.
    let mut bad = compose.clone();
    bad["services"]["penstock"]["prots"] = serde_json::json!([]);
    assert!(!validator.is_valid(&bad));
    let services = compose["services"].as_object().expect("services");
    for name in [
        "scylla",
        "redpanda",
        "console",
        "prometheus",
        "grafana",
        "penstock",
    ] {
        assert!(services.contains_key(name), "{name}");
    }
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume
                .as_str()
                .expect("in the short form")
                .split(':')
                .next();
            if let Some(path) = from.filter(|from| from.starts_with("./")) {
                assert!(Path::new(path).exists(), "{name} mounts {path}");
            }
        }
    }
    let metrics = &compose["services"]["penstock"]["environment"]["PENSTOCK_ADMIN__METRICS_TOKEN"];
    let token = metrics.as_str().expect("a token");
    assert!(read("deploy/prometheus/prometheus.yaml").contains(&format!("credentials: {token} ")));
}

#[test]
fn what_prometheus_and_grafana_are_given_is_there() {
    let prometheus = "deploy/prometheus/prometheus.yaml";
    let sources = "deploy/grafana/provisioning/datasources/penstock.yaml";
    let boards = "deploy/grafana/provisioning/dashboards/penstock.yaml";
    let all = [prometheus, sources, boards].map(documents);
    let [Some(prometheus), Some(sources), Some(boards)] = &all else {
        return;
    };
    assert_eq!(
        prometheus[0]["rule_files"][0],
        "/etc/prometheus/alerts.yaml"
    );
    // As the alert that asks for `up` has it.
    assert_eq!(prometheus[0]["scrape_configs"][0]["job_name"], "penstock");
    let target = &prometheus[0]["scrape_configs"][0]["static_configs"][0]["targets"][0];
    assert_eq!(target, "penstock:9180");
    assert_eq!(
        sources[0]["datasources"][0]["url"],
        "http://prometheus:9090"
    );
    let folder = boards[0]["providers"][0]["options"]["path"].as_str();
    let mounted = format!("{}/penstock.json:ro", folder.expect("a path"));
    assert!(read("docker-compose.yml").contains(&mounted));
}

#[test]
fn the_manifests_keep_their_schemas() {
    let manifests = "deploy/kubernetes/penstock.yaml";
    let here = Command::new("kubernetes-validate")
        .arg("--version")
        .output();
    if !here.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no kubernetes-validate here");
        return;
    }
    let looked = Command::new("kubernetes-validate")
        .args(["--strict", "--quiet", manifests])
        .output()
        .expect("it ran a moment ago");
    let said = [looked.stdout, looked.stderr].concat();
    assert!(
        looked.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

/// By Prometheus' own judge, where it is had: the rules and the scrape configuration are good, each alert comes when it should
/// and does not before (`tests/deploy/alerts.yaml`), and what the dashboard asks for is PromQL.
#[test]
fn promtool_takes_rules_alerts_and_queries() {
    let here = Command::new("promtool").arg("--version").output();
    if !here.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no promtool here");
        return;
    }
    let judge = |args: &[&str]| {
        let looked = Command::new("promtool").args(args).output();
        let looked = looked.expect("it ran a moment ago");
        let said = [looked.stdout, looked.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(looked.status.success(), "{args:?}: {said}");
        said
    };
    for args in [
        &[
            "check",
            "rules",
            "--lint-fatal",
            "deploy/prometheus/alerts.yaml",
        ][..],
        &[
            "check",
            "config",
            "--syntax-only",
            "deploy/prometheus/prometheus.yaml",
        ],
        &["test", "rules", "tests/deploy/alerts.yaml"],
    ] {
        println!("promtool {}\n{}", args.join(" "), judge(args));
    }
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/penstock.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let asked = panels.iter().filter_map(|p| p["targets"].as_array());
    let asked: Vec<&str> = asked.flatten().filter_map(|t| t["expr"].as_str()).collect();
    for query in &asked {
        // Grafana fills these in.
        let query = query.replace("$__rate_interval", "5m");
        judge(&["--experimental", "promql", "format", &query]);
    }
    println!("{} queries of the dashboard are PromQL", asked.len());
    // Each alert has a test.
    let rules = read("deploy/prometheus/alerts.yaml");
    let tests = read("tests/deploy/alerts.yaml");
    for alert in rules
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("alertname: {alert}\n")),
            "no test of {alert}"
        );
    }
}

/// Dashboard and alerts ask for what there is, by labels that it has.
#[test]
fn dashboard_and_alerts_name_metrics_that_are_served() {
    let dashboard = read("deploy/grafana/penstock.json");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = parsed["panels"].as_array().expect("panels");
    let asked = panels.iter().flat_map(|p| p["targets"].as_array());
    let expressions: Vec<&str> = asked.flatten().filter_map(|t| t["expr"].as_str()).collect();
    let alerts = read("deploy/prometheus/alerts.yaml");
    let rules = alerts
        .lines()
        .filter_map(|l| l.trim().strip_prefix("expr: "));
    let all: Vec<&str> = expressions.into_iter().chain(rules).collect();
    assert!(all.len() > 30, "{all:#?}");
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for expression in all {
        let names: Vec<&str> = expression
            .split(|c| !word(c))
            .filter(|w| w.starts_with("penstock_"))
            .collect();
        // `up` is Prometheus' own.
        assert!(
            !names.is_empty() || expression == "up{job=\"penstock\"} == 0",
            "{expression}"
        );
        let mut labels: Vec<&str> = vec!["instance", "le"];
        for name in names {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s));
            let metric = table().find(|m| m.name == name || Some(m.name) == family);
            let metric = metric.unwrap_or_else(|| panic!("nobody serves {name}: {expression}"));
            labels.extend(metric.labels);
        }
        let grouped = expression
            .split(" by (")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for label in grouped.flat_map(|list| list.split(", ")) {
            assert!(labels.contains(&label), "{label} in {expression}");
        }
    }
}
