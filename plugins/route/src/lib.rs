//! Sets topic, key and headers of records by templates; of a change it makes a record. See docs/plugins/route.md.

use penstock_plugin::{
    About, Change, Error, Field, Interest, Output, Setting, Settings, Table, Transform,
};
use penstock_plugin_events::{Event, Template, templates};

struct Route {
    topic: Option<Template>,
    key: Option<Template>,
    headers: Vec<(String, Template)>,
    drop_headers: Vec<String>,
    topics: Vec<String>,
}

impl Transform for Route {
    fn about() -> About {
        About::new("Sets topic, key and headers of records by templates; of a change it makes a record.")
            .setting(Setting::text("topic").doc("where to, e.g. `events.{value.type}`; a record's own, and `{keyspace}.{table}` of a change, if it is not set"))
            .setting(Setting::text("key").doc("the key, e.g. `{value.customer.id}`; a record's own, and a change's primary key as JSON, if it is not set"))
            .setting(Setting::table("headers").doc("names and templates, e.g. { tenant = \"{value.tenant|}\" }; one that comes out empty is left out"))
            .setting(Setting::texts("drop_headers").doc("headers of records that are taken out"))
            .setting(Setting::texts("topics").doc("the records' topics; the others pass by; all if it is not set"))
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let template = |name: &str| {
            let text = settings.get(name);
            text.map(|text| Template::parse(name, text)).transpose()
        };
        Ok(Self {
            topic: template("topic")?,
            key: template("key")?,
            headers: templates("headers", settings.get("headers"))?,
            drop_headers: settings.texts("drop_headers")?,
            topics: settings.texts("topics")?,
        })
    }

    fn interest(&mut self, _: &Table) -> Result<Interest, Error> {
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let event = Event::of(change);
        let own = match event.is_record() {
            true => change.get::<&str>("topic")?.to_owned(),
            false => format!("{}.{}", change.table().keyspace, change.table().name),
        };
        if event.is_record() && !self.topics.is_empty() && !self.topics.contains(&own) {
            out.forward(change);
            return Ok(());
        }
        let topic = match &self.topic {
            Some(topic) => topic.fill(&event)?,
            None => own,
        };
        let mut record = out.record(&topic);
        record = match &self.key {
            Some(key) => record.key(&key.fill(&event)?),
            None => event.put_key(record)?,
        };
        record = event.put_value(record)?;
        if event.is_record() {
            let replaced = |name: &str| self.headers.iter().any(|(new, _)| new == name);
            for (name, value) in event.headers()? {
                if replaced(name) || self.drop_headers.iter().any(|gone| gone == name) {
                    continue;
                }
                record = match value {
                    Some(bytes) => record.header(name, bytes),
                    None => record.header(name, Field::Null),
                };
            }
        }
        for (name, value) in &self.headers {
            let value = value.fill(&event)?;
            if !value.is_empty() {
                record = record.header(name, &value);
            }
        }
        Ok(())
    }
}

penstock_plugin::export_plugin!(Route);
