//! A year: the planner's model of a busy one, and a small one in which everything is real.

use anyhow::Result;
use chatkeep_planner::RetentionPolicy;
use chatkeep_planner::year::{ChatModel, PriceList, YearReport, live};
use chatkeep_tests::simulation::year::{self, Report};
use chatkeep_tests::stack::programs;
use chatkeep_tests::stack::random::Random;
use serde_json::{Value, json};

use crate::prove_capture::Failures;

/// Objects that a restore of any point reads, besides packs.
const CHAIN_MAX: u64 = 60;

/// Lives through both.
pub(crate) fn year(random: &mut Random, days: u32, failures: &mut Failures) -> Result<Value> {
    let model = ChatModel { seed: random.number(), ..ChatModel::default() };
    let modelled = live(&model, &RetentionPolicy::default(), &PriceList::S3_STANDARD);
    if modelled.faults > 0 || modelled.chain_links_max > CHAIN_MAX {
        failures.add(format!("the year as modelled: {modelled:?}"));
    }
    let seed = random.number();
    let program = programs::ours("chatkeep-writer")?;
    let real = match year::live(&crate::prove_capture_stress::memory(), &program, days, seed) {
        Ok(real) => real,
        Err(error) => {
            failures.add(format!("the year, seed {seed}: {error:#}"));
            Report::default()
        }
    };
    if real.chain_max > CHAIN_MAX {
        failures.add(format!("the year, seed {seed}: a restore reads {} entries", real.chain_max));
    }
    Ok(json!({ "model": of_model(&modelled), "real": of_real(&real) }))
}

fn cents(dollars: f64) -> f64 {
    (dollars * 10_000.0).round() / 10_000.0
}

fn of_model(report: &YearReport) -> Value {
    json!({
        "days": report.days, "messages": report.messages, "database_bytes": report.database_bytes,
        "entries": report.entries_by_level.iter().sum::<u64>(), "objects": report.objects,
        "objects_max": report.objects_max, "stored_bytes": report.stored_bytes, "put_bytes": report.put_bytes,
        "puts": report.puts, "deletes": report.deletes, "chain_max": report.chain_links_max,
        "restore_objects": report.restore_objects, "restore_bytes": report.restore_bytes,
        "dollars": cents(report.storage_dollars + report.request_dollars),
    })
}

fn of_real(report: &Report) -> Value {
    json!({
        "days": report.days, "entries": report.entries, "levels": report.levels,
        "database_bytes": report.database_bytes, "objects": report.objects, "stored_bytes": report.stored_bytes,
        "stored_bytes_max": report.stored_bytes_max, "put_bytes": report.put_bytes, "puts": report.puts,
        "deletes": report.deletes, "points": report.points, "restores": report.restores,
        "chain_max": report.chain_max, "restore_objects": report.restore_objects, "restore_ms": report.restore_ms,
        "dollars": cents(report.dollars),
    })
}
