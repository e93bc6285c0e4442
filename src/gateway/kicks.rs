//! Kicks: the engine's commands to close connections.
//!
//! A kick for a connection that is no longer here is not an error. When the subscription ends, it is opened again at
//! the current end of the topic. A kick that was missed meanwhile is sent again at the connection's next heartbeat.

use super::GatewayState;
use super::frames::Close;
use super::health::End;
use super::roster::ConnectionCommand;
use super::uplink::Kick;
use crate::metrics;
use crate::presence::change::KickReason;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often, at most, the engine is asked whether another process uses this gateway's name.
const ASK_AGAIN_MS: u64 = 1_000;

/// Carries out kicks from the subscription that is already open, or from a new one.
pub async fn run(edge: Arc<GatewayState>, opened: Arc<Mutex<Option<mpsc::Receiver<Kick>>>>) -> End {
    let opened = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut kicks = match opened {
        Some(kicks) => kicks,
        None => match edge.uplink.kicks(&edge.config.name).await {
            Ok(kicks) => kicks,
            Err(error) => return End::Failed(format!("subscribing to kicks failed: {error}")),
        },
    };
    let mut ask_at_ms = 0;
    let mut doubt = false;
    loop {
        let kick = tokio::select! {
            kick = kicks.recv() => match kick {
                Some(kick) => kick,
                None => return End::Failed("the subscription to kicks ended".to_owned()),
            },
            () = tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS)), if doubt => {
                doubt = is_superseded(&edge).await.is_none();
                continue;
            }
        };
        if kick.epoch == edge.epoch
            && let Some(session) = edge.roster.get(kick.conn)
        {
            match Close::of_kick(kick.reason) {
                Some(_) => {
                    metrics::gateway_kick(kick.reason);
                    session.order(ConnectionCommand::Kick(kick.reason));
                }
                // The engine asks for the user. A heartbeat names it; the engine then knows the connection again, or
                // kicks it.
                None => edge.heartbeats.identify(&session),
            }
        }
        // `stale` may concern this connection only. Whether it concerns the whole gateway, only the engine knows.
        let now_ms = edge.clock.monotonic_ms();
        let suspicious = kick.epoch > edge.epoch || kick.epoch == edge.epoch && kick.reason == KickReason::Stale;
        if suspicious && now_ms >= ask_at_ms {
            ask_at_ms = now_ms + ASK_AGAIN_MS;
            doubt = is_superseded(&edge).await.is_none();
        }
    }
}

/// Asks whether the engine knows a greater epoch of this name, in which case this gateway must end. `None` if there is
/// no response.
pub async fn is_superseded(edge: &GatewayState) -> Option<bool> {
    match edge.uplink.epoch(&edge.config.name).await {
        Ok(Some(epoch)) if epoch > edge.epoch => {
            edge.superseded(epoch);
            Some(true)
        }
        Ok(_) => Some(false),
        Err(_) => None,
    }
}
