//! `rollcall log incidents`: the topic of incidents, which has one partition.

use super::{Args, LIMIT, POLL, for_terminal, schemas};
use crate::log::Reader;
use crate::presence::Offset;
use anyhow::{Context as _, bail};
use std::io::{self, IsTerminal as _, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

pub fn run(mut reader: Box<dyn Reader>, args: &Args, interrupted: &Receiver<()>) -> anyhow::Result<()> {
    if args.partition.is_some_and(|partition| partition > 0) {
        bail!("--partition must be 0 for incidents, or be left out: their topic has one partition");
    }
    let (schemas, _runtime) = schemas(args.registry.as_ref())?;
    let is_terminal = io::stdout().is_terminal();
    let mut output = io::stdout().lock();
    let mut next = args.from.map(Offset);
    let mut warned = String::new();
    loop {
        let mut records = Vec::new();
        let read = reader.read_incidents(next.unwrap_or_default(), LIMIT, &mut records);
        match read {
            Ok(range) => {
                if let Some(wanted) = next.filter(|next| *next < range.start) {
                    let start = range.start;
                    bail!(
                        "the topic of incidents no longer has offset {wanted}: the oldest record kept is {start}; give --from {start} or \
                         more"
                    );
                }
            }
            Err(error) if args.follow && reader.may_recover(&error) => {
                let words = error.to_string();
                if warned != words {
                    eprintln!("warning: {words}; retrying until interrupted");
                    warned = words;
                }
            }
            Err(error) => return Err(error.into()),
        }
        for record in &records {
            let unreadable = || format!("offset {} of incidents cannot be read", record.offset);
            let incident = schemas.incident(&record.value)?.with_context(unreadable)?;
            let mut line = serde_json::to_vec(&incident)?;
            if is_terminal {
                line = for_terminal(&line);
            }
            line.push(b'\n');
            match output.write_all(&line).and_then(|()| output.flush()) {
                // The reader has closed the pipe: not an error.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            next = Some(Offset(record.offset.0 + 1));
        }
        let pause = if records.is_empty() { POLL } else { Duration::ZERO };
        if records.is_empty() && !args.follow {
            return Ok(());
        }
        if interrupted.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
        reader.refresh()?;
    }
}
