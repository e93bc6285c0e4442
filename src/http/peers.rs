//! The other nodes: whoever is asked here for what another node has asks that one.
//!
//! Who has what the owners say themselves, in the log ([`Owners`]). A request that comes from a node is answered from
//! what is here and goes no further, so that none runs in circles while partitions move; what nobody can answer at the
//! moment is a 503 with a moment to wait, never a guess.

use super::Fault;
use crate::cause::reason;
use crate::log::kafka::Owners;
use crate::presence::Partition;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::collections::BTreeMap;
use std::time::Duration;

/// In every request of a node to another.
const FROM_NODE: HeaderName = HeaderName::from_static("rollcall-from-node");
const CONNECT: Duration = Duration::from_secs(1);
/// Longer than a question may wait for `at_least`.
const ANSWER: Duration = Duration::from_secs(8);

/// See the module.
#[derive(Clone)]
pub struct Peers {
    owners: Owners,
    me: HeaderValue,
    client: reqwest::Client,
}

/// On whose behalf a request is made.
#[derive(Clone)]
pub struct Asker {
    from_node: bool,
    authorization: Option<HeaderValue>,
}

impl Asker {
    pub fn of(headers: &HeaderMap) -> Asker {
        Asker {
            from_node: headers.contains_key(FROM_NODE),
            authorization: headers.get(header::AUTHORIZATION).cloned(),
        }
    }

    /// Somebody who is let in already and whose own headers are of no use to other nodes: they get this bearer token.
    pub fn with_token(token: Option<&str>) -> Asker {
        let authorization = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        Asker {
            from_node: false,
            authorization,
        }
    }

    /// Whether another node asks, which wants to know what is here and no more.
    pub fn is_node(&self) -> bool {
        self.from_node
    }
}

impl Peers {
    /// `url` is where the others reach this node.
    pub fn new(owners: Owners, url: &str) -> anyhow::Result<Peers> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Peers {
            owners,
            me: HeaderValue::from_str(url)?,
            client,
        })
    }

    /// Where the others reach this node.
    pub fn me(&self) -> &str {
        self.me.to_str().unwrap_or_default()
    }

    /// Where a partition was last taken up: the start of a URL.
    pub fn owner(&self, partition: Partition) -> Option<String> {
        self.owners.of(partition).map(|owner| owner.url)
    }

    /// Whom to ask for a partition that is not here.
    pub fn elsewhere(&self, partition: Partition, asker: &Asker) -> Result<String, Fault> {
        let (owned, _) = self.by_owner(std::iter::once(partition));
        let url = owned.into_keys().next().filter(|_| !asker.is_node());
        url.ok_or_else(|| moving(partition))
    }

    /// Partitions by the node that has them. Those of nobody, or of this node by the topic's word though it has them not,
    /// are moving and come apart.
    pub fn by_owner(
        &self,
        partitions: impl Iterator<Item = Partition>,
    ) -> (BTreeMap<String, Vec<Partition>>, Vec<Partition>) {
        let mut owned: BTreeMap<String, Vec<Partition>> = BTreeMap::new();
        let mut moving = Vec::new();
        for partition in partitions {
            match self.owner(partition) {
                Some(url) if self.me != url => owned.entry(url).or_default().push(partition),
                Some(_) | None => moving.push(partition),
            }
        }
        (owned, moving)
    }

    /// Asks a node for a path with its query; with a body it is a POST.
    pub async fn ask(
        &self,
        url: &str,
        path: &str,
        body: Option<Vec<u8>>,
        asker: &Asker,
    ) -> Result<(StatusCode, Bytes), Fault> {
        let to = format!("{url}{path}");
        let mut request = match body {
            Some(body) => self
                .client
                .post(to)
                .header(header::CONTENT_TYPE, "application/json")
                .body(body),
            None => self.client.get(to),
        };
        request = request.header(FROM_NODE, self.me.clone());
        if let Some(authorization) = &asker.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let unreached = |error: reqwest::Error| {
            let why = reason(error);
            Fault::unavailable(
                "moving",
                format!("the node {url}, which had the partition last, does not answer: {why}"),
            )
        };
        let response = request.send().await.map_err(unreached)?;
        let status = response.status();
        Ok((status, response.bytes().await.map_err(unreached)?))
    }
}

/// What there is to say of a partition that nobody can be asked about.
pub fn moving(partition: Partition) -> Fault {
    let message = format!("partition {partition} is between two nodes; try again shortly");
    Fault::unavailable("moving", message)
}
