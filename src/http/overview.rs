//! The whole at a glance: policy, gateways, stats, health, metrics.

use super::{Face, Fault};
use crate::engine::PartitionStats;
use crate::engine::census::Census;
use crate::presence::{Partition, Status};
use crate::schema::json::Object;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::collections::BTreeMap;

fn partitions(face: &Face) -> impl Iterator<Item = Partition> + use<> {
    (0..face.engine.log().partitions()).map(Partition)
}

/// `GET /v1/policy`: the completed policy and since which record each partition has it.
pub async fn policy(State(face): State<Face>) -> Result<Response, Fault> {
    let mut since = Vec::new();
    let mut policy = None;
    for partition in partitions(&face) {
        let answer = face.engine.policy(partition).await?;
        let (document, offset) = answer.value;
        since.push((partition, offset));
        policy.get_or_insert(document);
    }
    let mut body = Vec::new();
    Object::new(&mut body)
        .raw("policy", policy.unwrap_or_default().as_bytes())
        .list("since", since, |out, (partition, offset)| {
            Object::new(out)
                .number("partition", partition.0.into())
                .optional_number("offset", offset.map(|offset| offset.0))
                .end();
        })
        .end();
    Ok(super::json(body))
}

#[derive(Deserialize)]
struct PartitionLine {
    gateways: Vec<GatewayLine>,
}

#[derive(Deserialize, Clone)]
struct GatewayLine {
    gateway: String,
    epoch: u64,
    ended: bool,
    lease_until: Option<u64>,
}

/// `GET /v1/gateways`: each with the greatest epoch that any partition knows, and the latest lease of that.
pub async fn gateways(State(face): State<Face>) -> Result<Response, Fault> {
    let mut gateways: BTreeMap<String, GatewayLine> = BTreeMap::new();
    for partition in partitions(&face) {
        let line = face.engine.partition(partition).await?;
        let line: PartitionLine = serde_json::from_slice(&line)
            .map_err(|error| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string()))?;
        for gateway in line.gateways {
            let newest = gateways
                .entry(gateway.gateway.clone())
                .or_insert_with(|| gateway.clone());
            let rank = |line: &GatewayLine| (line.epoch, line.ended, line.lease_until);
            if rank(&gateway) > rank(newest) {
                *newest = gateway;
            }
        }
    }
    let mut body = Vec::new();
    Object::new(&mut body)
        .list("gateways", gateways.into_values(), |out, gateway| {
            Object::new(out)
                .text("gateway", &gateway.gateway)
                .number("epoch", gateway.epoch)
                .boolean("ended", gateway.ended)
                .optional_number("lease_until", gateway.lease_until)
                .end();
        })
        .end();
    Ok(super::json(body))
}

async fn all_stats(face: &Face) -> Result<Vec<PartitionStats>, Fault> {
    let mut all = Vec::new();
    for partition in partitions(face) {
        all.push(face.engine.stats(partition).await?);
    }
    Ok(all)
}

/// `GET /v1/stats`
pub async fn stats(State(face): State<Face>) -> Result<Response, Fault> {
    let all = all_stats(&face).await?;
    let mut census = Census::default();
    all.iter().for_each(|stats| census.add(&stats.census));
    let mut users = Vec::new();
    let mut object = Object::new(&mut users);
    object.number("known", census.known());
    for status in Status::ALL.iter().rev() {
        object.number(status.name(), census.users(*status));
    }
    object.end();
    let mut devices = Vec::new();
    let mut object = Object::new(&mut devices);
    for status in [Status::Online, Status::PushOnline] {
        let mut platforms = Vec::new();
        let mut counts = Object::new(&mut platforms);
        for (platform, count) in census.devices(status).filter(|(_, count)| *count > 0) {
            counts.count(platform, count);
        }
        counts.end();
        object.raw(status.name(), &platforms);
    }
    object.end();
    let mut body = Vec::new();
    Object::new(&mut body)
        .raw("users", &users)
        .raw("devices", &devices)
        .list("partitions", &all, |out, stats| {
            let mut object = Object::new(out);
            object
                .number("partition", stats.partition.0.into())
                .text("state", stats.state)
                .number("log_end", stats.log_end.0)
                .number("committed", stats.committed.0)
                .number("applied", stats.applied.0)
                .optional_number("time", crate::engine::millis(stats.time))
                .number("lag", stats.log_end.0.saturating_sub(stats.applied.0));
            if let Some(error) = &stats.error {
                object.text("error", error);
            }
            object.end();
        })
        .text("version", env!("CARGO_PKG_VERSION"))
        .end();
    Ok(super::json(body))
}

/// `GET /healthz`: the process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: every partition is live.
pub async fn readyz(State(face): State<Face>) -> Result<&'static str, Fault> {
    if *face.stopping.borrow() {
        return Err(Fault::unavailable("stopping", "the server is stopping"));
    }
    let stats = all_stats(&face).await?;
    match stats.iter().find(|stats| stats.state != "live") {
        None => Ok("ready\n"),
        Some(stats) => {
            let why = stats
                .error
                .as_deref()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            let message = format!("partition {} is {}{why}", stats.partition, stats.state);
            Err(Fault::unavailable("not_ready", message))
        }
    }
}

/// `GET /metrics`, in Prometheus' text format.
pub async fn metrics() -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], crate::metrics::text()).into_response()
}
