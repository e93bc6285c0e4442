//! The lease, which tells every partition every few seconds that this gateway is alive.
//!
//! When the lease ends, because the gateway was killed or cut off, the engine takes its users offline at once instead
//! of waiting for each time-out. Publishing the lease is also how the gateway finds out whether the log accepts events. It says
//! nothing about whether the engine counts the lease: one of a lesser epoch is acknowledged and then ignored, without a kick. So after
//! each lease the engine is asked whether another process has this name.

use super::GatewayState;
use super::health::End;
use super::kicks::is_superseded;
use super::uplink::Unavailable;
use crate::presence::event::Event;
use std::sync::Arc;
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(1);

/// Publishes the lease to every partition. All of them have acknowledged it when this returns.
pub async fn renew(edge: &GatewayState, ttl_ms: u64) -> Result<(), Unavailable> {
    let lease = Event::Lease {
        gateway: edge.config.name.clone().into(),
        epoch: edge.epoch,
        ttl_ms,
    };
    edge.uplink.append(vec![lease]).await
}

/// Renews the lease as long as the gateway runs. `first_ms` is the monotonic time at which the first one was sent.
pub async fn run(edge: Arc<GatewayState>, first_ms: u64) -> End {
    let mut last_ms = first_ms;
    let mut renewed = true;
    let retry = RETRY.min(edge.config.lease_every);
    loop {
        let interval = async {
            // Asked meanwhile, so that a slow answer delays no lease. Without an answer, the question is asked after the next lease.
            let asked = async {
                if renewed {
                    let _ = tokio::time::timeout(edge.config.lease_every, is_superseded(&edge)).await;
                }
            };
            tokio::join!(tokio::time::sleep(edge.config.lease_every), asked);
        };
        tokio::select! {
            () = interval => {}
            // After a failure, a lease soon tests whether the log accepts events again.
            () = edge.log_is_ill.notified() => tokio::time::sleep(retry).await,
        }
        let sent_ms = edge.clock.monotonic_ms();
        let result = renew(&edge, edge.config.lease_ms).await;
        renewed = result.is_ok();
        match result {
            Ok(()) => {
                edge.log_works();
                // The lease before this one was sent at `last_ms` and cannot have lasted longer than `lease_ms` from
                // then.
                let late = edge.clock.monotonic_ms().saturating_sub(last_ms) > edge.config.lease_ms;
                last_ms = sent_ms;
                if late {
                    tracing::warn!(
                        "the lease may have ended before it was renewed, publishing a heartbeat of every connection"
                    );
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
