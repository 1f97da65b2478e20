//! Which kinds of stores there are, and which plugins of the home directory may run.

use chatkeep_store_host::manifest::find::{Manifests, Places};
use chatkeep_store_host::manifest::trust::TrustList;
use chatkeep_store_host::manifest::{Manifest, Origin};
use serde_json::{Value, json};

use super::add::refused;
use super::trusted;
use crate::explain::{Failure, Result};
use crate::output::{self, Colour, paint, plain};

pub(super) fn kinds(json: bool) -> Result<()> {
    let manifests = Manifests::load(&Places::usual());
    let trust = TrustList::new(&trusted()?);
    if json {
        let kinds: Vec<Value> = manifests.iter().map(|manifest| to_json(manifest, &trust)).collect();
        output::json(&json!({ "kinds": kinds, "faults": manifests.faults() }));
        return Ok(());
    }
    let headings = ["URL", "OPTIONS", "SECRETS", "FROM"];
    let mut rows = vec![headings.map(|text| paint(text, Colour::Bold)).to_vec()];
    rows.push(["file:", "", "", "the service itself"].map(str::to_owned).to_vec());
    for manifest in manifests.iter() {
        let names = |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let schemes: Vec<String> = manifest.schemes.iter().map(|scheme| format!("{scheme}:")).collect();
        rows.push(vec![
            plain(&schemes.join(" ")),
            plain(&names(manifest.options.keys().collect())),
            plain(&names(manifest.secrets.keys().collect())),
            plain(&origin(manifest, &trust)),
        ]);
    }
    output::print(&output::table(&rows));
    manifests.faults().iter().for_each(|fault| output::note(&plain(fault)));
    Ok(())
}

pub(super) fn trust(plugin: &str, json: bool) -> Result<()> {
    let manifests = Manifests::load(&Places::usual());
    let manifest = manifests.named(plugin).map_err(|error| refused(&error))?;
    if !matches!(manifest.origin, Origin::Home(_)) {
        return Err(Failure::said(&format!("`{plugin}` needs no trust: it is part of the system"), ""));
    }
    TrustList::new(&trusted()?).trust(manifest).map_err(|error| refused(&error))?;
    done(&format!("`{plugin}` is trusted as it is now: {}", manifest.exec.display()), json);
    if !json {
        output::note("a store that waited for it goes on after `chatkeep store test STORE`");
    }
    Ok(())
}

pub(super) fn distrust(plugin: &str, json: bool) -> Result<()> {
    let manifests = Manifests::load(&Places::usual());
    let manifest = manifests.named(plugin).map_err(|error| refused(&error))?;
    let was = TrustList::new(&trusted()?).distrust(manifest).map_err(|error| refused(&error))?;
    let text = if was { "is trusted no more" } else { "was not trusted" };
    done(&format!("`{plugin}` {text}"), json);
    Ok(())
}

fn done(text: &str, json: bool) {
    if json {
        output::json(&json!({ "ok": true }));
    } else {
        output::line(&plain(text));
    }
}

fn origin(manifest: &Manifest, trust: &TrustList) -> String {
    match &manifest.origin {
        Origin::Shipped => "Chatkeep".to_owned(),
        Origin::System(path) => path.display().to_string(),
        Origin::Home(path) => match trust.check(manifest) {
            Ok(()) => format!("{}, trusted", path.display()),
            Err(_) => format!("{}, not trusted", path.display()),
        },
    }
}

fn to_json(manifest: &Manifest, trust: &TrustList) -> Value {
    let options: Vec<Value> = manifest
        .options
        .iter()
        .map(|(name, spec)| {
            json!({ "name": name, "doc": spec.doc, "default": spec.default, "one_of": spec.one_of, "required": spec.required })
        })
        .collect();
    let secrets: Vec<Value> = manifest
        .secrets
        .iter()
        .map(|(name, spec)| json!({ "name": name, "prompt": spec.prompt, "required": spec.required }))
        .collect();
    json!({
        "name": manifest.name, "schemes": manifest.schemes, "options": options, "secrets": secrets,
        "manifest": manifest.path(), "usable": trust.check(manifest).is_ok(),
    })
}
