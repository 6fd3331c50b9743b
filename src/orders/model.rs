//! Orders, requests about them, and what is wrong with a request.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most lines an order may have; bounds a row and its event.
const MAX_ITEMS: usize = 1_000;
/// The longest text field, in bytes.
const MAX_TEXT: usize = 256;

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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateOrder {
    /// Who orders.
    pub customer_id: String,
    /// ISO 4217, three capital letters.
    pub currency: String,
    /// At least one.
    pub items: Vec<Item>,
}

/// `PATCH /orders/{id}`: what is left out stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

fn error(errors: &mut Vec<FieldError>, pointer: impl Into<String>, detail: impl Into<String>) {
    errors.push(FieldError {
        pointer: pointer.into(),
        detail: detail.into(),
    });
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
