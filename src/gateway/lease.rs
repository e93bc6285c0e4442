//! The lease: every few seconds a word to every partition that this gateway is alive.
//!
//! When it ends, because the gateway was killed or cut off, the engine takes its users offline at once instead of
//! waiting for each one's time-out. Publishing it is also how the gateway knows whether the log takes anything.

use super::GatewayState;
use super::health::End;
use super::uplink::Unavailable;
use crate::presence::event::Event;
use std::sync::Arc;
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(1);

/// One word to every partition; acknowledged by all of them when this returns.
pub async fn renew(edge: &GatewayState, ttl_ms: u64) -> Result<(), Unavailable> {
    let lease = Event::Lease {
        gateway: edge.config.name.clone().into(),
        epoch: edge.epoch,
        ttl_ms,
    };
    edge.uplink.append(vec![lease]).await
}

/// Renews for as long as the gateway runs, from a first one that was sent at this monotonic time.
pub async fn run(edge: Arc<GatewayState>, first_ms: u64) -> End {
    let mut last_ms = first_ms;
    let retry = RETRY.min(edge.config.lease_every);
    loop {
        tokio::select! {
            () = tokio::time::sleep(edge.config.lease_every) => {}
            // Whether the log takes anything again is asked by a lease, and soon.
            () = edge.log_is_ill.notified() => tokio::time::sleep(retry).await,
        }
        let sent_ms = edge.clock.monotonic_ms();
        match renew(&edge, edge.config.lease_ms).await {
            Ok(()) => {
                edge.log_works();
                // From when the one before was sent it cannot have run longer than this; nor can this one.
                let late = edge.clock.monotonic_ms().saturating_sub(last_ms) > edge.config.lease_ms;
                last_ms = sent_ms;
                if late {
                    tracing::warn!("the lease may have ended before it was renewed, so every connection shows life");
                    super::heartbeats::all(&edge).await;
                }
            }
            Err(error) => {
                edge.log_failed(&error);
                edge.log_is_ill.notify_one();
            }
        }
    }
}
