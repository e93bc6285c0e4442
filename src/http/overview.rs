//! Answers about the whole cluster: policy, gateways, stats, health, metrics.

use super::peers::{Asker, NoAnswer};
use super::{ApiError, AppState, Peers};
use crate::api::answers::PartitionStats as PartitionLine;
use crate::api::answers::{
    DeviceCounts, GatewayState, Gateways, MalformedGroup, PolicyAnswer, PolicySince, Stats, UserCounts,
};
use crate::api::client::RouteRequest;
use crate::api::routes::RouteId;
use crate::engine::census::Census;
use crate::engine::rejected::Reason;
use crate::engine::{KnownGateway, KnownStats, PartitionStats, QueryError, millis};
use crate::presence::change::IgnoreReason;
use crate::presence::{Partition, Status};
use crate::schema::policy::policy_json;
use crate::tasks;
use crate::version;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};

fn partitions(app: &AppState) -> impl Iterator<Item = Partition> + use<> {
    (0..app.engine.log().partitions()).map(Partition)
}

/// Asks the nodes that own the partitions that are not here. Returns the URL, the partitions and the answer of each.
/// Asks nobody if the request comes from another node.
pub(super) async fn others<T: DeserializeOwned>(
    app: &AppState,
    asker: &Asker,
    elsewhere: &[Partition],
    route: RouteId,
) -> Vec<(String, Vec<Partition>, Result<T, NoAnswer>)> {
    let Some(peers) = app.peers.as_ref().filter(|_| !asker.is_node() && !elsewhere.is_empty()) else {
        return Vec::new();
    };
    let (owned, _) = peers.by_owner(elsewhere.iter().copied());
    let asked = owned.into_iter().map(async |(url, partitions)| {
        let answer = peers.ask(&url, RouteRequest::new(route, &[])).await;
        (url, partitions, answer)
    });
    futures_util::future::join_all(asked).await
}

/// Fails if the answer of a partition is missing: a partial answer would be misleading.
fn all_heard(app: &AppState, missing: &BTreeSet<Partition>) -> Result<(), ApiError> {
    missing.first().map_or(Ok(()), |partition| Err(app.moving(*partition)))
}

/// `GET /v1/policy`: the completed policy, and the record since which each partition has it.
pub async fn policy(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asker = Asker::of(&headers);
    let mut since: BTreeMap<Partition, Option<u64>> = BTreeMap::new();
    let mut policy = None;
    let mut elsewhere = Vec::new();
    let engine = &app.engine;
    let asked = partitions(&app).map(|partition| async move { (partition, engine.policy(partition).await) });
    for (partition, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(answer) => {
                let (document, offset) = answer.value;
                since.insert(partition, offset.map(|offset| offset.0));
                policy.get_or_insert_with(|| policy_json(&document));
            }
            Err(QueryError::Elsewhere) if app.peers.is_some() => elsewhere.push(partition),
            Err(error) => return Err(error.into()),
        }
    }
    let mut missing: BTreeSet<Partition> = elsewhere.iter().copied().collect();
    for (_, _, answer) in others(&app, &asker, &elsewhere, RouteId::Policy).await {
        let answer: PolicyAnswer<Box<RawValue>> = answer?;
        policy.get_or_insert_with(|| answer.policy.get().to_owned());
        for one in answer.since {
            if missing.remove(&Partition(one.partition)) {
                since.insert(Partition(one.partition), one.offset);
            }
        }
    }
    if !asker.is_node() {
        all_heard(&app, &missing)?;
    }
    let policy = RawValue::from_string(policy.unwrap_or_else(|| "null".to_owned()));
    let policy =
        policy.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string()))?;
    let since = since.into_iter().map(|(partition, offset)| PolicySince {
        partition: partition.0,
        offset,
    });
    Ok(super::answer(&PolicyAnswer {
        policy,
        since: since.collect(),
    }))
}

/// `GET /v1/gateways`: each gateway with the greatest epoch that any partition knows, and the latest lease of that
/// epoch.
pub async fn gateways(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asker = Asker::of(&headers);
    let mut gateways: BTreeMap<String, GatewayState> = BTreeMap::new();
    let mut add = |line: GatewayState| {
        let newest = gateways.entry(line.gateway.clone()).or_insert_with(|| line.clone());
        let rank = |line: &GatewayState| (line.epoch, line.ended, line.lease_until);
        if rank(&line) > rank(newest) {
            *newest = line;
        }
    };
    let mut elsewhere = Vec::new();
    let mut heard = Vec::new();
    let engine = &app.engine;
    let asked = partitions(&app).map(|partition| async move { (partition, engine.gateways(partition).await) });
    for (partition, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(known) => {
                known.into_iter().map(GatewayState::from).for_each(&mut add);
                heard.push(partition.0);
            }
            Err(QueryError::Elsewhere) if app.peers.is_some() => elsewhere.push(partition),
            Err(error) => return Err(error.into()),
        }
    }
    let mut missing: BTreeSet<Partition> = elsewhere.iter().copied().collect();
    for (_, _, answer) in others(&app, &asker, &elsewhere, RouteId::Gateways).await {
        let answer: Gateways = answer?;
        for partition in answer.heard.unwrap_or_default() {
            missing.remove(&Partition(partition));
        }
        answer.gateways.into_iter().for_each(&mut add);
    }
    if !asker.is_node() {
        all_heard(&app, &missing)?;
    }
    Ok(super::answer(&Gateways {
        gateways: gateways.into_values().collect(),
        heard: asker.is_node().then_some(heard),
    }))
}

impl From<KnownGateway> for GatewayState {
    fn from(known: KnownGateway) -> GatewayState {
        GatewayState {
            gateway: known.name,
            epoch: known.epoch.0,
            ended: known.ended,
            lease_until: millis(known.lease_until),
        }
    }
}

/// What this node knows about the partitions.
#[derive(Default)]
pub(super) struct Local {
    pub here: Vec<PartitionStats>,
    /// How partitions of this node were doing whose workers do not answer at the moment.
    busy: Vec<KnownStats>,
    /// Partitions of this node whose workers fence the earlier owner off, and since when by the wall clock. Those that were known
    /// before are in `busy` too.
    fencing: Vec<(Partition, u64)>,
    /// Partitions of this node whose workers do not answer and have not done so yet, or have just ended.
    silent: Vec<Partition>,
    pub elsewhere: Vec<Partition>,
}

impl Local {
    /// What totals are made of: without what was known of partitions that are busy, totals would fall and rise again.
    pub fn counted(&self) -> impl Iterator<Item = &PartitionStats> {
        self.here.iter().chain(self.busy.iter().map(|known| &known.stats))
    }

    /// The first partition of this node that does not answer.
    fn unanswered(&self) -> Option<Partition> {
        let busy = self.busy.iter().map(|known| known.stats.partition);
        busy.chain(self.silent.iter().copied()).min()
    }
}

pub(super) async fn local_stats(app: &AppState) -> Result<Local, ApiError> {
    let engine = &app.engine;
    let answers = partitions(app).map(|partition| async move {
        let answer = match engine.fencing_since_ms(partition) {
            Some(_) => Err(QueryError::Unavailable),
            None => engine.stats(partition).await,
        };
        (partition, answer)
    });
    let mut local = Local::default();
    for (partition, answer) in futures_util::future::join_all(answers).await {
        match answer {
            Ok(stats) => local.here.push(stats),
            Err(QueryError::Unavailable | QueryError::Busy) => {
                let fencing = engine.fencing_since_ms(partition);
                local.fencing.extend(fencing.map(|since_ms| (partition, since_ms)));
                match engine.known_stats(partition) {
                    Some(known) => local.busy.push(known),
                    None if fencing.is_some() => {}
                    None => local.silent.push(partition),
                }
            }
            Err(QueryError::Elsewhere) if app.peers.is_some() => local.elsewhere.push(partition),
            // Its worker has ended and is being restarted; the other partitions are not affected.
            Err(QueryError::Elsewhere) => local.silent.push(partition),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(local)
}

/// The error of a partition whose worker does not answer.
const WAITS: &str = "no answer; it folds a large record, waits for the log, or is restarting";

/// What a worker does that fences.
const FENCES: &str =
    "it fences the node that had the partition before, and may have to wait for that node's transaction to end";

/// Reduces each path in a sentence to its last part, for clients that show no token.
fn without_paths(sentence: &str) -> String {
    let begins_path = |before: Option<char>| {
        before.is_none_or(|c| c.is_whitespace() || matches!(c, '(' | '[' | '"' | '\'' | '`' | '=' | ':' | ',' | ';'))
    };
    let mut said = String::with_capacity(sentence.len());
    let mut rest = sentence;
    while let Some(at) = rest.find('/') {
        let before = rest[..at].chars().next_back().or_else(|| said.chars().next_back());
        let path = &rest[at..];
        // A path may contain spaces. In a sentence, no other slash follows a path without a space before it.
        let end = path.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ')' | ',' | ';'));
        let path = &path[..end.unwrap_or(path.len())];
        said.push_str(&rest[..at]);
        if begins_path(before) && !path.starts_with("//") {
            let trimmed = path.trim_end_matches(['/', ':', '.']);
            let last = trimmed.rsplit('/').next().unwrap_or_default();
            said.push('…');
            said.push('/');
            said.push_str(last);
            said.push_str(&path[trimmed.len()..]);
        } else {
            said.push_str(path);
        }
        rest = &rest[at + path.len()..];
    }
    said.push_str(rest);
    said
}

/// Counts that are summed over several nodes.
#[derive(Default)]
struct Counts {
    users: UserCounts,
    devices: DeviceCounts,
    changes: u64,
    ignored: BTreeMap<String, u64>,
    malformed: BTreeMap<String, MalformedGroup>,
}

/// Adds counts by name.
fn add_all(sums: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) {
    for (name, count) in counts {
        *sums.entry(name.clone()).or_default() += count;
    }
}

impl Counts {
    fn of<'a>(counted: impl Iterator<Item = &'a PartitionStats>) -> Counts {
        let mut census = Census::default();
        let mut counts = Counts::default();
        for stats in counted {
            census.add(&stats.census);
            counts.changes += stats.changes;
            for (reason, count) in IgnoreReason::ALL
                .iter()
                .zip(stats.ignored)
                .filter(|(_, count)| *count > 0)
            {
                *counts.ignored.entry(reason.name().to_owned()).or_default() += count;
            }
            for (reason, group) in Reason::ALL.iter().zip(&stats.rejected) {
                if let Some(group) = group {
                    counts.add_malformed(MalformedGroup {
                        reason: reason.name().to_owned(),
                        count: group.count,
                        partition: stats.partition.0,
                        offset: group.newest.0,
                        error: group.error.clone(),
                    });
                }
            }
        }
        counts.users = UserCounts {
            known: census.known(),
            online: census.users(Status::Online),
            push_online: census.users(Status::PushOnline),
            offline: census.users(Status::Offline),
        };
        let devices = |status| {
            let devices = census.devices(status).filter(|(_, count)| *count > 0);
            devices.map(|(platform, count)| (platform.to_owned(), count)).collect()
        };
        counts.devices = DeviceCounts {
            online: devices(Status::Online),
            push_online: devices(Status::PushOnline),
        };
        counts
    }

    fn add_malformed(&mut self, group: MalformedGroup) {
        match self.malformed.get_mut(&group.reason) {
            None => drop(self.malformed.insert(group.reason.clone(), group)),
            Some(sum) => {
                let count = sum.count + group.count;
                // Any example will do; the one with the greater offset is more likely to be the newer one.
                let newest = if group.offset > sum.offset { group } else { sum.clone() };
                *sum = MalformedGroup { count, ..newest };
            }
        }
    }

    fn add(&mut self, other: &Stats) {
        self.changes += other.changes;
        add_all(&mut self.ignored, &other.ignored);
        for group in &other.malformed {
            self.add_malformed(group.clone());
        }
        let UserCounts {
            known,
            online,
            push_online,
            offline,
        } = other.users;
        self.users.known += known;
        self.users.online += online;
        self.users.push_online += push_online;
        self.users.offline += offline;
        add_all(&mut self.devices.online, &other.devices.online);
        add_all(&mut self.devices.push_online, &other.devices.push_online);
    }
}

pub(super) fn stats_line(stats: &PartitionStats, owner: Option<&str>) -> PartitionLine {
    PartitionLine {
        partition: stats.partition.0,
        state: stats.state.to_owned(),
        revision: stats.revision.map(|revision| revision.0),
        log_end: Some(stats.log_end.0),
        committed: Some(stats.committed.0),
        applied: Some(stats.applied.0),
        time: Some(millis(stats.time)),
        lag: Some(stats.lag),
        changes: Some(stats.changes),
        owner: owner.map(str::to_owned),
        error: stats.error.clone(),
        warning: match (&stats.refusal, &stats.warning) {
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => Some(one.to_string()),
            (Some(refusal), Some(warning)) => Some(format!("{refusal}; {warning}")),
        },
        since: None,
        known_at: None,
    }
}

/// Returns the line of a partition whose worker does not answer, with what was known of it.
fn busy_line(known: &KnownStats, owner: Option<&str>) -> PartitionLine {
    PartitionLine {
        state: "busy".to_owned(),
        error: Some(WAITS.to_owned()),
        known_at: Some(known.at_ms),
        ..stats_line(&known.stats, owner)
    }
}

/// Returns the line of a partition without figures: no worker processes it at the moment, or its node does not answer.
fn bare_line(partition: Partition, state: &str, owner: Option<&str>, error: Option<&str>) -> PartitionLine {
    PartitionLine {
        partition: partition.0,
        state: state.to_owned(),
        owner: owner.map(str::to_owned),
        error: error.map(str::to_owned),
        ..PartitionLine::default()
    }
}

/// `GET /v1/stats`: figures of the whole cluster, as far as its nodes answer.
pub async fn stats(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asker = Asker::of(&headers);
    let local = local_stats(&app).await?;
    let mut counts = Counts::of(local.counted());
    let Local {
        here,
        busy,
        fencing,
        silent,
        elsewhere,
    } = local;
    let me = app.peers.as_ref().map(|peers| peers.me().to_owned());
    let mut lines: BTreeMap<Partition, PartitionLine> = BTreeMap::new();
    for stats in &here {
        lines.insert(stats.partition, stats_line(stats, me.as_deref()));
    }
    for known in &busy {
        lines.insert(known.stats.partition, busy_line(known, me.as_deref()));
    }
    for (partition, since_ms) in fencing {
        let bare = || bare_line(partition, "", me.as_deref(), None);
        let line = lines.entry(partition).or_insert_with(bare);
        line.state = "fencing".to_owned();
        (line.error, line.since) = (Some(FENCES.to_owned()), Some(since_ms));
    }
    for partition in silent {
        let line = bare_line(partition, "waiting", me.as_deref(), Some(WAITS));
        lines.insert(partition, line);
    }
    for (url, partitions, answer) in others(&app, &asker, &elsewhere, RouteId::Stats).await {
        let answer: Stats = match answer {
            Ok(answer) => answer,
            Err(unreadable @ NoAnswer::Unreadable { .. }) => return Err(unreadable.into()),
            Err(no_answer) => {
                let api_error = ApiError::from(no_answer);
                for partition in partitions {
                    lines.insert(
                        partition,
                        bare_line(partition, "moving", Some(&url), Some(api_error.message())),
                    );
                }
                continue;
            }
        };
        counts.add(&answer);
        for line in answer.partitions {
            lines.insert(Partition(line.partition), line);
        }
    }
    if !asker.is_node() {
        for partition in elsewhere {
            lines.entry(partition).or_insert_with(|| {
                let owner = app.peers.as_ref().and_then(|peers| peers.owner(partition));
                let refusal = app.engine.log().refusal().map(|refusal| refusal.to_string());
                bare_line(partition, "moving", owner.as_deref(), refusal.as_deref())
            });
        }
    }
    Ok(super::answer(&Stats {
        users: counts.users,
        devices: counts.devices,
        partitions: lines.into_values().collect(),
        changes: counts.changes,
        ignored: counts.ignored,
        malformed: counts.malformed.into_values().collect(),
        now: app.engine.clock().now_ms(),
        version: version::VERSION.to_owned(),
        commit: version::COMMIT.to_owned(),
        revision: app.engine.common_revision().0,
    }))
}

/// `GET /healthz`: responds if the process is running.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: succeeds if this node knows its partitions and all of them are live. A node that is ready may report
/// warnings, one per line. The route requires no token, so its text contains no paths of this machine.
pub async fn readyz(State(app): State<AppState>) -> Result<String, ApiError> {
    if *app.stopping.borrow() {
        return Err(ApiError::unavailable("stopping", "the server is stopping"));
    }
    if let Some(failure) = tasks::failure() {
        return Err(ApiError::unavailable("not_ready", failure));
    }
    if !app.engine.has_assignment() {
        let why = "the group has not assigned partitions to this node, or has revoked all of them because it received no \
                   heartbeats";
        let what = app.engine.group_error();
        let what = what.as_deref().unwrap_or("check whether the brokers can be reached");
        return Err(ApiError::unavailable(
            "not_ready",
            without_paths(&format!("{why}: {what}")),
        ));
    }
    let local = local_stats(&app).await?;
    if let Some((partition, since_ms)) = local.fencing.first() {
        let for_s = app.engine.now_ms().saturating_sub(*since_ms) / 1_000;
        let message = format!("partition {partition} is fencing: {FENCES} ({for_s} s so far)");
        return Err(ApiError::unavailable("not_ready", message));
    }
    if let Some(partition) = local.unanswered() {
        return Err(ApiError::unavailable(
            "not_ready",
            format!("partition {partition}: {WAITS}"),
        ));
    }
    // A held partition works except that it does not advance: it keeps what is published, and answers from what it has
    // folded.
    let works = |stats: &&PartitionStats| matches!(stats.state, "live" | "held");
    if let Some(stats) = local.here.iter().find(|stats| !works(stats)) {
        let why = stats.error.as_deref().or(stats.warning.as_deref());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!("partition {} is {}{why}", stats.partition, stats.state);
        return Err(ApiError::unavailable("not_ready", without_paths(&message)));
    }
    // A node without partitions can have a refusal too.
    let refusal = local
        .here
        .iter()
        .find_map(|stats| stats.refusal.as_deref().map(str::to_owned));
    // The embedded log may take a moment to answer, and the workers, if there are any, have asked it already.
    let of_log = || {
        let log = app.engine.log();
        local.here.is_empty().then(|| log.refusal()).flatten()
    };
    if let Some(refusal) = refusal.or_else(|| of_log().map(|refusal| refusal.to_string())) {
        return Err(ApiError::unavailable("not_ready", without_paths(&refusal)));
    }
    let held = local.here.iter().filter(|stats| stats.state == "held").count();
    let mut answer = match held {
        0 => "ready\n".to_owned(),
        held => format!("ready, but {held} partitions are held by open transactions of publishers\n"),
    };
    if let Some(warning) = app.peers.as_ref().and_then(Peers::warning) {
        answer.push_str(&format!("warning: {warning}\n"));
    }
    for stats in &local.here {
        if let Some(warning) = &stats.warning {
            let warning = without_paths(warning);
            answer.push_str(&format!("warning: partition {}: {warning}\n", stats.partition));
        }
    }
    Ok(answer)
}

/// `GET /metrics`: the metrics in Prometheus' text format.
pub async fn metrics(State(app): State<AppState>) -> Response {
    // Workers look whether events can be published. On Kafka a node may have none, and this log answers from memory.
    if app.peers.is_some() {
        crate::metrics::log_writable(app.engine.log().refusal().is_none());
    }
    for (cache, bytes) in app.engine.cache_bytes() {
        crate::metrics::cache_bytes(cache, bytes);
    }
    crate::metrics::cache_bytes("subscriptions", app.changes.bytes() + app.kicks.bytes());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], crate::metrics::text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::without_paths;

    #[test]
    fn what_needs_no_token_says_no_paths() {
        for (sentence, said) in [
            (
                "the store /srv/x/store/1 cannot be used: IO error: While open: /srv/x/store/1/000012.sst: Too many open files",
                "the store …/1 cannot be used: IO error: While open: …/000012.sst: Too many open files",
            ),
            ("/srv/log: its files are gone", "…/log: its files are gone"),
            ("the log (in \"/a/b c/log\")", "the log (in \"…/b c/log\")"),
            (
                "the file '/a/ENDS', and and/or 3/4 http://h/x.",
                "the file '…/ENDS', and and/or 3/4 http://h/x.",
            ),
            ("nothing to hide", "nothing to hide"),
        ] {
            assert_eq!(without_paths(sentence), said);
        }
    }
}
