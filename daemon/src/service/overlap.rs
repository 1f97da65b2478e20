//! Whether several vaults are really several: two that one person can open, or that fall together, count as one. Pure.

use std::net::IpAddr;

/// What is known of a vault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) name: &'a str,
    pub(super) url: &'a str,
    pub(super) operator: &'a str,
}

/// One sentence for each pair that has something in common. No name is resolved: the service has no network.
pub(super) fn overlaps(vaults: &[Known<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for (i, one) in vaults.iter().enumerate() {
        for other in &vaults[i + 1..] {
            if let Some(common) = in_common(*one, *other) {
                found.push(format!("the vaults {} and {} {common}", one.name, other.name));
            }
        }
    }
    found
}

fn in_common(one: Known<'_>, other: Known<'_>) -> Option<String> {
    let operator = one.operator.trim();
    if !operator.is_empty() && operator.to_lowercase() == other.operator.trim().to_lowercase() {
        return Some(format!("have the same operator ({operator})"));
    }
    let (a, b) = (host(one.url)?, host(other.url)?);
    if a == b {
        return Some(format!("are at the same host ({a})"));
    }
    if a.parse::<IpAddr>().is_ok() || b.parse::<IpAddr>().is_ok() {
        return None;
    }
    let (a, b) = (registered(&a), registered(&b));
    (a == b).then(|| format!("are in the same domain ({a})"))
}

/// The host of `https://host:port/…`, in lower case.
fn host(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    let authority = authority.rsplit('@').next()?;
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => authority.split(':').next()?,
    };
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

/// What somebody registered, as far as that can be told without the public suffix list: the last two labels, or three where
/// the last is a country and the one before short (`example.co.uk`). Wrong for some: a warning too many or too few.
fn registered(host: &str) -> String {
    let labels: Vec<&str> = host.split('.').collect();
    let country = labels.last().is_some_and(|last| last.len() == 2);
    let short = labels.len() >= 3 && labels[labels.len() - 2].len() <= 3;
    let take = if country && short { 3 } else { 2 };
    labels[labels.len().saturating_sub(take)..].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(one: (&str, &str), other: (&str, &str), wanted: Option<&str>) {
        let known = |name, (url, operator)| Known { name, url, operator };
        let found = overlaps(&[known("a", one), known("b", other)]);
        match wanted {
            Some(wanted) => assert!(found.len() == 1 && found[0].contains(wanted), "{found:?}"),
            None => assert_eq!(found, Vec::<String>::new()),
        }
    }

    #[test]
    fn two_vaults_of_one_operator_are_named() {
        check(("https://a.example", "Society"), ("https://b.test", "society "), Some("same operator"));
        check(("https://a.example", ""), ("https://b.test", ""), None);
    }

    #[test]
    fn two_vaults_at_one_host_or_address_are_named() {
        check(("https://a.example:1", ""), ("https://A.example:2/x", ""), Some("same host (a.example)"));
        check(("https://127.0.0.1:1", ""), ("https://127.0.0.1:2", ""), Some("same host"));
        check(("https://[2001:db8::1]:1", ""), ("https://[2001:db8::1]:2", ""), Some("same host"));
        check(("https://192.0.2.1", ""), ("https://192.0.2.2", ""), None);
        check(("https://10.0.2.1", ""), ("https://9.0.2.1", ""), None);
    }

    #[test]
    fn two_vaults_in_one_registered_domain_are_named() {
        check(("https://a.example.org", ""), ("https://b.example.org", ""), Some("domain (example.org)"));
        check(("https://a.one.co.uk", ""), ("https://b.two.co.uk", ""), None);
        check(("https://a.one.co.uk", ""), ("https://b.one.co.uk", ""), Some("domain (one.co.uk)"));
        check(("https://one.example", ""), ("https://two.example", ""), None);
    }
}
