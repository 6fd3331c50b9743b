//! Orders, requests about them, and what is wrong with a request.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::body::{Body, Object};

/// The most lines an order may have; bounds a row and its event.
const MAX_ITEMS: usize = 1_000;
/// The longest text field, in bytes.
const MAX_TEXT: usize = 256;
/// Of what is wrong with a request, this much is told: it may be as much as there are bytes in it.
const MAX_ERRORS: usize = 100;

/// Where an order is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Status {
    Placed,
    Confirmed,
    Shipped,
    Delivered,
    Cancelled,
}

/// A line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// What.
    pub sku: String,
    /// How many.
    pub quantity: u32,
    /// Price of one in the currency's minor unit (cents).
    pub unit_price_minor: i64,
}

/// An order as it is kept and as events carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Chosen by the service.
    pub id: Uuid,
    /// Who ordered.
    pub customer_id: String,
    /// Where it is on its way.
    pub status: Status,
    /// What was ordered.
    pub items: Vec<Item>,
    /// ISO 4217.
    pub currency: String,
    /// Sum of the lines in the currency's minor unit.
    pub total_minor: i64,
    /// Counts its changes, from 1.
    pub version: i32,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// Milliseconds since the Unix epoch.
    pub updated_at_ms: i64,
}

/// `POST /orders`
#[derive(Clone, Debug, Serialize)]
pub struct CreateOrder {
    /// Who orders.
    pub customer_id: String,
    /// ISO 4217, three capital letters.
    pub currency: String,
    /// At least one.
    pub items: Vec<Item>,
}

/// `PATCH /orders/{id}`: what is left out stays.
#[derive(Clone, Debug, Default)]
pub struct UpdateOrder {
    /// The new status; `cancelled` is what DELETE is for.
    pub status: Option<Status>,
    /// The new lines.
    pub items: Option<Vec<Item>>,
}

/// One thing that is wrong with a request, as RFC 9457's example of an `errors` member has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// JSON pointer to the field.
    pub pointer: String,
    /// What is wrong and what would do.
    pub detail: String,
}

pub(super) fn error(
    errors: &mut Vec<FieldError>,
    pointer: impl Into<String>,
    detail: impl Into<String>,
) {
    if errors.len() < MAX_ERRORS {
        errors.push(FieldError {
            pointer: pointer.into(),
            detail: detail.into(),
        });
    }
}

/// What a request's body has to be.
pub(super) trait Request: Sized {
    /// The body, or what of it is not as it has to be; what it says is not judged.
    fn read(body: &Body) -> Result<Self, Vec<FieldError>>;
}

impl Request for CreateOrder {
    fn read(body: &Body) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let read = Self::members(body, &mut errors);
        read.filter(|_| errors.is_empty()).ok_or(errors)
    }
}

impl CreateOrder {
    fn members(body: &Body, errors: &mut Vec<FieldError>) -> Option<Self> {
        let known = ["customer_id", "currency", "items"];
        let order = Object::read(body, "", &known, errors)?;
        let (customer_id, currency) = (
            order.text("customer_id", errors),
            order.text("currency", errors),
        );
        let items = order.require("items", "a list", errors, list);
        let items = items.and_then(|items| Item::read_all(items, &order.place("items"), errors));
        Some(Self {
            customer_id: customer_id?,
            currency: currency?,
            items: items?,
        })
    }
}

impl Request for UpdateOrder {
    fn read(body: &Body) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let read = Self::members(body, &mut errors);
        read.filter(|_| errors.is_empty()).ok_or(errors)
    }
}

impl UpdateOrder {
    fn members(body: &Body, errors: &mut Vec<FieldError>) -> Option<Self> {
        let change = Object::read(body, "", &["status", "items"], errors)?;
        let mut read = Self::default();
        if change.get("status").is_some() {
            read.status = change.require("status", Status::ANY, errors, Status::of);
        }
        if change.get("items").is_some() {
            let items = change.require("items", "a list", errors, list);
            read.items =
                items.and_then(|items| Item::read_all(items, &change.place("items"), errors));
        }
        Some(read)
    }
}

fn list(json: &Body) -> Option<&[Body]> {
    match json {
        Body::List(list) => Some(list),
        _ => None,
    }
}

impl Item {
    fn read_all(items: &[Body], at: &str, errors: &mut Vec<FieldError>) -> Option<Vec<Self>> {
        let places = items.iter().enumerate();
        // All of them are looked at, so that all that is wrong is told.
        let read: Vec<_> = places
            .map(|(i, item)| Self::read(item, &format!("{at}/{i}"), errors))
            .collect();
        read.into_iter().collect()
    }

    fn read(item: &Body, at: &str, errors: &mut Vec<FieldError>) -> Option<Self> {
        let known = ["sku", "quantity", "unit_price_minor"];
        let item = Object::read(item, at, &known, errors)?;
        let sku = item.text("sku", errors);
        let whole = "a whole number from 1 to 4294967295";
        let quantity = item.number("quantity", whole, errors, |n| {
            n.as_u64().and_then(|n| u32::try_from(n).ok())
        });
        let whole = "a whole number of at most 64 bits";
        let price = item.number("unit_price_minor", whole, errors, |n| n.as_i64());
        Some(Self {
            sku: sku?,
            quantity: quantity?,
            unit_price_minor: price?,
        })
    }
}

impl Status {
    const ANY: &str = "placed, confirmed, shipped, delivered or cancelled";

    fn of(json: &Body) -> Option<Self> {
        let Body::Text(word) = json else { return None };
        Some(match word.as_str() {
            "placed" => Self::Placed,
            "confirmed" => Self::Confirmed,
            "shipped" => Self::Shipped,
            "delivered" => Self::Delivered,
            "cancelled" => Self::Cancelled,
            _ => return None,
        })
    }
}

fn check_items(items: &[Item], errors: &mut Vec<FieldError>) -> i64 {
    if items.is_empty() || items.len() > MAX_ITEMS {
        error(
            errors,
            "/items",
            format!("has {} entries; 1 to {MAX_ITEMS} would do", items.len()),
        );
    }
    let mut total: Option<i64> = Some(0);
    for (i, item) in items.iter().enumerate() {
        if item.sku.trim().is_empty() || item.sku.len() > MAX_TEXT {
            error(
                errors,
                format!("/items/{i}/sku"),
                format!("must be 1 to {MAX_TEXT} bytes of text"),
            );
        }
        if item.quantity == 0 {
            error(
                errors,
                format!("/items/{i}/quantity"),
                "is 0; 1 or more would do",
            );
        }
        if item.unit_price_minor < 0 {
            error(
                errors,
                format!("/items/{i}/unit_price_minor"),
                "is negative; 0 or more would do",
            );
        }
        let line = item.unit_price_minor.checked_mul(i64::from(item.quantity));
        total = total.zip(line).and_then(|(a, b)| a.checked_add(b));
    }
    total.unwrap_or_else(|| {
        error(errors, "/items", "the total does not fit 64 bits");
        0
    })
}

impl CreateOrder {
    /// The order that this makes, or everything that is wrong with it.
    pub fn into_order(self, id: Uuid, now_ms: i64) -> Result<Order, Vec<FieldError>> {
        let mut errors = Vec::new();
        if self.customer_id.trim().is_empty() || self.customer_id.len() > MAX_TEXT {
            error(
                &mut errors,
                "/customer_id",
                format!("must be 1 to {MAX_TEXT} bytes of text"),
            );
        }
        if self.currency.len() != 3 || !self.currency.bytes().all(|b| b.is_ascii_uppercase()) {
            let found = &self.currency;
            error(
                &mut errors,
                "/currency",
                format!("is {found:?}; three capital letters (ISO 4217) would do"),
            );
        }
        let total_minor = check_items(&self.items, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Order {
            id,
            customer_id: self.customer_id,
            status: Status::Placed,
            items: self.items,
            currency: self.currency,
            total_minor,
            version: 1,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
        })
    }
}

impl UpdateOrder {
    /// Changes the order, or says everything that is wrong.
    pub fn apply(self, order: &mut Order, now_ms: i64) -> Result<(), Vec<FieldError>> {
        let mut errors = Vec::new();
        if self.status.is_none() && self.items.is_none() {
            error(
                &mut errors,
                "",
                "names neither `status` nor `items`: nothing to change",
            );
        }
        if self.status == Some(Status::Cancelled) {
            error(&mut errors, "/status", "use DELETE to cancel an order");
        }
        let total = self
            .items
            .as_deref()
            .map(|items| check_items(items, &mut errors));
        if !errors.is_empty() {
            return Err(errors);
        }
        if let Some(status) = self.status {
            order.status = status;
        }
        if let (Some(items), Some(total)) = (self.items, total) {
            order.items = items;
            order.total_minor = total;
        }
        order.version += 1;
        order.updated_at_ms = now_ms;
        Ok(())
    }
}

/// What happened to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// By POST.
    Created,
    /// By PATCH.
    Updated,
    /// By DELETE.
    Cancelled,
}

impl EventType {
    /// As in `outbox_messages.event_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "order.created",
            Self::Updated => "order.updated",
            Self::Cancelled => "order.cancelled",
        }
    }
}

/// The payload of an outbox row.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// The event.
    pub event_id: Uuid,
    /// What happened.
    pub event_type: &'static str,
    /// Milliseconds since the Unix epoch.
    pub occurred_at_ms: i64,
    /// The order after it.
    pub order: &'a Order,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> CreateOrder {
        let item = Item {
            sku: "bolt".into(),
            quantity: 3,
            unit_price_minor: 25,
        };
        CreateOrder {
            customer_id: "c-1".into(),
            currency: "EUR".into(),
            items: vec![item],
        }
    }

    #[test]
    fn a_good_order_is_summed_up() {
        let order = create().into_order(Uuid::nil(), 5).unwrap();
        assert_eq!(
            (order.total_minor, order.version, order.status),
            (75, 1, Status::Placed)
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let mut bad = create();
        bad.customer_id = " ".into();
        bad.currency = "eur".into();
        bad.items[0].quantity = 0;
        let errors = bad.into_order(Uuid::nil(), 0).unwrap_err();
        let pointers: Vec<&str> = errors.iter().map(|e| e.pointer.as_str()).collect();
        assert_eq!(pointers, ["/customer_id", "/currency", "/items/0/quantity"]);
    }

    fn refused<T: Request>(body: &str) -> Vec<(String, String)> {
        let json = serde_json::from_str(body).expect("JSON");
        let errors = T::read(&json).err().expect("it is refused");
        errors.into_iter().map(|e| (e.pointer, e.detail)).collect()
    }

    #[test]
    fn a_list_is_no_object_and_no_type_of_rust_is_named() {
        for body in [r#"["c", "EUR", [["a", 1, 2]]]"#, "5", "null", "\"x\""] {
            let [(pointer, detail)] = &refused::<CreateOrder>(body)[..] else {
                panic!("{body}")
            };
            assert_eq!(pointer, "");
            assert!(
                detail.ends_with("; an object with customer_id, currency, items would do"),
                "{detail}"
            );
        }
        let wrong = r#"{"customer_id": 1, "customer_id": "c", "a/b": 0, "items": [["a", 1, 2],
            {"sku": "s", "quantity": "3", "unit_price_minor": 1.5},
            {"sku": null, "quantity": 4294967296, "unit_price_minor": 9223372036854775808}]}"#;
        let told = refused::<CreateOrder>(wrong);
        let pointers: Vec<&str> = told.iter().map(|(p, _)| p.as_str()).collect();
        let expected = [
            "/customer_id",
            "/a~1b",
            "/customer_id",
            "/currency",
            "/items/0",
            "/items/1/quantity",
            "/items/1/unit_price_minor",
            "/items/2/sku",
            "/items/2/quantity",
            "/items/2/unit_price_minor",
        ];
        assert_eq!(pointers, expected);
        for (_, detail) in told.into_iter().chain(refused::<UpdateOrder>("[]")) {
            for rust in ["struct", "u32", "i64", "sequence", "enum"] {
                assert!(!detail.contains(rust), "{detail}");
            }
        }
        let [(pointer, detail)] = &refused::<UpdateOrder>(r#"{"status": "lost"}"#)[..] else {
            panic!("one")
        };
        assert_eq!(pointer, "/status");
        assert!(detail.contains("placed, confirmed"), "{detail}");
        let many = format!("{{\"items\": [{}0]}}", "0,".repeat(5_000));
        assert_eq!(refused::<UpdateOrder>(&many).len(), MAX_ERRORS);
    }

    #[test]
    fn what_is_as_it_has_to_be_is_read() {
        let body = serde_json::to_string(&create()).expect("JSON");
        let read = CreateOrder::read(&serde_json::from_str(&body).expect("JSON"));
        assert_eq!(read.expect("it is good").items, create().items);
        for status in ["placed", "confirmed", "shipped", "delivered", "cancelled"] {
            let body = format!("{{\"status\": \"{status}\", \"items\": null}}");
            let read = UpdateOrder::read(&serde_json::from_str(&body).expect("JSON"));
            let read = read.expect("it is good");
            let word = serde_json::to_value(read.status).expect("JSON");
            assert_eq!((word.as_str(), read.items), (Some(status), None));
        }
    }

    #[test]
    fn a_total_that_overflows_is_refused() {
        let mut bad = create();
        bad.items[0].unit_price_minor = i64::MAX;
        assert_eq!(
            bad.into_order(Uuid::nil(), 0).unwrap_err()[0].pointer,
            "/items"
        );
    }
}
