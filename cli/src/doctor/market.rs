//! Checks of the market: the record, where its keys come from, and the peers that the auction process reaches.

use k8s_openapi::api::apps::v1::Deployment;
use vendue_auction_core::{KeyOrigin, MarketRecord, SignedMarketRecord};

use super::api::{Cluster, Seen};
use super::checks::{Profile, forbidden, upgrade_command};
use crate::error::CliError;
use crate::metrics_text;
use crate::report::Check;

/// Port of the auction process' metrics.
const METRICS: u16 = 9472;

/// The record, and the peers when there is a record.
pub async fn all(
    cluster: &Cluster,
    auction: &Seen<Deployment>,
    profile: Profile,
) -> Result<Vec<Check>, CliError> {
    let name = config_map_name(auction);
    let map = match cluster.config_map(&name).await? {
        Seen::There(map) => map,
        Seen::Forbidden => return Ok(vec![forbidden("market record")]),
        Seen::Missing => {
            let next = upgrade_command(&cluster.system, "--set-file market.record=market.json");
            return Ok(vec![Check::fail("market record", format!("ConfigMap {name} is missing"), next)]);
        }
    };
    let text = map.data.and_then(|mut d| d.remove("market.json")).unwrap_or_default();
    let record = match SignedMarketRecord::from_json(&text) {
        Ok(signed) => signed.record,
        Err(error) => {
            let next = "get the record from its issuer again";
            return Ok(vec![Check::fail("market record", error.to_string(), next)]);
        }
    };
    let mut checks = vec![Check::ok(
        "market record",
        format!(
            "{:?}: {} seats, {} homes, tolerates {} faulty",
            record.name,
            record.n(),
            record.homes.len(),
            record.f()
        ),
    )];
    if record.key_origin == KeyOrigin::InsecureDealer {
        checks.push(Check::warn(
            "market keys",
            "one dealer made all keys and could read every bid: for development only",
        ));
    }
    checks.extend(peers(cluster, &record, profile).await?);
    Ok(checks)
}

/// The ConfigMap that the auction process mounts.
fn config_map_name(auction: &Seen<Deployment>) -> String {
    let Seen::There(deployment) = auction else { return "vendue-market".to_owned() };
    let volumes =
        deployment.spec.iter().flat_map(|s| s.template.spec.iter()).flat_map(|s| s.volumes.iter().flatten());
    let name = volumes.into_iter().find(|v| v.name == "market").and_then(|v| v.config_map.as_ref());
    name.map_or_else(|| "vendue-market".to_owned(), |c| c.name.clone())
}

async fn peers(cluster: &Cluster, record: &MarketRecord, profile: Profile) -> Result<Vec<Check>, CliError> {
    let name = "peers";
    let pod = match cluster.pods("vendue-auction").await? {
        Seen::There(pods) => pods.into_iter().find_map(|p| {
            let running = p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"));
            p.metadata.name.filter(|_| running)
        }),
        _ => return Ok(vec![forbidden(name)]),
    };
    let Some(pod) = pod else {
        return Ok(vec![Check::fail(
            name,
            "the auction process does not run",
            format!("kubectl get pods -n {}", cluster.system),
        )]);
    };
    let text = match cluster.metrics(&pod, METRICS).await {
        Ok(Seen::There(text)) => text,
        Ok(_) => return Ok(vec![forbidden(name)]),
        Err(error) => return Ok(vec![Check::warn(name, format!("metrics of {pod} not read: {error}"))]),
    };
    let connected = metrics_text::value(&text, "vendue_auction_peers_connected", &[("role", "seat")]);
    let mut checks = vec![judge(connected, record, profile)];
    if profile.provider && metrics_text::value(&text, "vendue_auction_seat_active", &[]) == Some(0.0) {
        checks
            .push(Check::warn("seat", "only observes, until the rounds begun before its start have expired"));
    }
    Ok(checks)
}

/// Enough seats for a quorum, this cluster's own included when it has one.
fn judge(connected: Option<f64>, record: &MarketRecord, profile: Profile) -> Check {
    let Some(connected) = connected else {
        return Check::warn("peers", "the auction process does not say how many it reaches");
    };
    let others = f64::from(record.n()) - if profile.provider { 1.0 } else { 0.0 };
    let needed = f64::from(record.q()) - if profile.provider { 1.0 } else { 0.0 };
    let detail = format!("{connected} of {others} seats connected");
    if connected >= others {
        Check::ok("peers", detail)
    } else if connected >= needed {
        Check::warn("peers", format!("{detail}; rounds still decide with {needed}"))
    } else {
        Check::fail(
            "peers",
            format!("{detail}; {needed} are needed for a round to decide"),
            "can this cluster reach the UDP addresses in the market record, and they this one? Firewall, NodePort 30470/UDP",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Level;
    use rand_core::SeedableRng;
    use vendue_auction_core::{DealSpec, MemberSpec, deal};

    #[test]
    fn peers_are_judged_by_the_quorum() {
        let member =
            |name: &str| MemberSpec { name: name.into(), peer_id: format!("p{name}"), addresses: vec![] };
        let params =
            serde_json::json!({"delay_ms": 100, "period_ms": 600, "handover_ms": 30_000, "genesis_ms": 0});
        let spec = DealSpec {
            name: "m".into(),
            params: serde_json::from_value(params).unwrap(),
            seats: ["a", "b", "c", "d"].map(member).into(),
            homes: vec![],
        };
        let dealt = deal(&spec, &mut rand_chacha::ChaCha20Rng::seed_from_u64(1)).unwrap();
        let level = |connected, provider: bool| {
            judge(Some(connected), &dealt.record.record, Profile { home: !provider, provider }).level
        };
        assert_eq!(
            [level(4.0, false), level(3.0, false), level(2.0, false)],
            [Level::Ok, Level::Warn, Level::Fail]
        );
        assert_eq!(
            [level(3.0, true), level(2.0, true), level(1.0, true)],
            [Level::Ok, Level::Warn, Level::Fail]
        );
    }
}
