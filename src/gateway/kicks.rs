//! Kicks: the engine's orders to close connections, carried out.
//!
//! A kick for a connection that is not here any more is no error. A subscription that ends is opened again, from now
//! on; a kick that was missed meanwhile is given again at the connection's next heartbeat.

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

/// The engine is asked at most so often whether somebody else took this gateway's name.
const ASK_AGAIN_MS: u64 = 1_000;

/// Runs on the subscription that is there, or on one of its own.
pub async fn run(edge: Arc<GatewayState>, opened: Arc<Mutex<Option<mpsc::Receiver<Kick>>>>) -> End {
    let opened = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut kicks = match opened {
        Some(kicks) => kicks,
        None => match edge.uplink.kicks(&edge.config.name).await {
            Ok(kicks) => kicks,
            Err(error) => return End::Failed(format!("no subscription: {error}")),
        },
    };
    let mut ask_at_ms = 0;
    let mut doubt = false;
    loop {
        let kick = tokio::select! {
            kick = kicks.recv() => match kick {
                Some(kick) => kick,
                None => return End::Failed("the subscription ended".to_owned()),
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
                // The engine asks whose it is: a heartbeat says so, and the engine then knows it again, or kicks it.
                None => edge.beats.identify(&session),
            }
        }
        // `stale` is also said of one connection only; whether it is the whole gateway, the engine knows.
        let now_ms = edge.clock.monotonic_ms();
        let suspicious = kick.epoch > edge.epoch || kick.epoch == edge.epoch && kick.reason == KickReason::Stale;
        if suspicious && now_ms >= ask_at_ms {
            ask_at_ms = now_ms + ASK_AGAIN_MS;
            doubt = is_superseded(&edge).await.is_none();
        }
    }
}

/// Whether a greater epoch of this name is known; then the gateway ends. None if nobody could say.
async fn is_superseded(edge: &GatewayState) -> Option<bool> {
    match edge.uplink.epoch(&edge.config.name).await {
        Ok(Some(epoch)) if epoch > edge.epoch => {
            edge.superseded(epoch);
            Some(true)
        }
        Ok(_) => Some(false),
        Err(_) => None,
    }
}
