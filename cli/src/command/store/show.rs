//! Stores in `chatkeep status`: what they are asked and cost, and why nothing is sent.

use serde_json::{Value, json};

use crate::output::{Colour, paint, plain, size};
use crate::view::Object;

/// The table of `chatkeep status`.
pub(in crate::command) fn rows(stores: &[Object]) -> Vec<Vec<String>> {
    let headings = ["STORE", "KIND", "STATE", "USED", "THIS MONTH", "WHERE"];
    let mut rows = vec![headings.map(|text| paint(text, Colour::Bold)).to_vec()];
    for store in stores {
        rows.push(vec![
            plain(&store.text("Id")),
            plain(&store.text("Kind")),
            plain(&state_words(store)),
            used(store),
            this_month(store),
            plain(&store.text("Url")),
        ]);
    }
    rows
}

pub(in crate::command) fn to_json(store: &Object) -> Value {
    let (error, message) = store.error("LastError");
    let error = if error.is_empty() { Value::Null } else { json!({"error": error, "message": message}) };
    let cost: i64 = store.get("MonthCost");
    json!({
        "id": store.text("Id"), "kind": store.text("Kind"), "url": store.text("Url"),
        "state": store.text("State"), "pause_reason": store.text("PauseReason"),
        "bytes_used": store.number("BytesUsed"), "bytes_quota": store.number("BytesQuota"),
        "month_requests": store.number("MonthRequests"), "month_bytes": store.number("MonthBytes"),
        "month_cost": (cost >= 0).then_some(cost as f64 / 1e6),
        "capabilities": store.list("Capabilities"), "last_error": error,
    })
}

/// `ok`, `paused: metered` …
fn state_words(store: &Object) -> String {
    match (store.text("State"), store.text("PauseReason")) {
        (state, reason) if state == "paused" => format!("paused: {reason}"),
        (state, _) => state,
    }
}

fn used(store: &Object) -> String {
    match (store.number("BytesUsed"), store.number("BytesQuota")) {
        (used, 0) => size(used),
        (used, quota) => format!("{} of {}", size(used), size(quota)),
    }
}

/// Requests, bytes, and what they cost where a price is known. Less than a hundredth is called that.
fn this_month(store: &Object) -> String {
    let (requests, bytes) = (store.number("MonthRequests"), store.number("MonthBytes"));
    let cost = match store.get::<i64>("MonthCost") {
        ..0 => String::new(),
        0..10_000 => ", below 0.01".to_owned(),
        cost => format!(", about {:.2}", cost as f64 / 1e6),
    };
    format!("{requests} requests, {}{cost}", size(bytes))
}
