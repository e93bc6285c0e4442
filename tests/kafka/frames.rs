//! Kafka's frames, as far as the proxy has to understand them: four bytes of length, and then, of a request, the number of its
//! API, the API's version and a number that its answer repeats; of an answer that number. What follows is passed on as it is.

use std::io::{self, Read};

/// Larger than any request or answer that a broker takes or gives.
const FRAME_BYTES_MAX: usize = 128 << 20;

/// The header of a request and the producer's id, which comes first in all requests that have one.
const HEAD_BYTES: usize = 200;

/// What a request asks for. The numbers are in Kafka's protocol guide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Api {
    Produce,
    Fetch,
    OffsetFetch,
    Heartbeat,
    InitProducerId,
    AddPartitionsToTxn,
    AddOffsetsToTxn,
    EndTxn,
    TxnOffsetCommit,
    Other(i16),
}

impl Api {
    fn new(number: i16) -> Api {
        match number {
            0 => Api::Produce,
            1 => Api::Fetch,
            9 => Api::OffsetFetch,
            12 => Api::Heartbeat,
            22 => Api::InitProducerId,
            24 => Api::AddPartitionsToTxn,
            25 => Api::AddOffsetsToTxn,
            26 => Api::EndTxn,
            28 => Api::TxnOffsetCommit,
            other => Api::Other(other),
        }
    }
}

/// A request or an answer without its length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// The next one; None where the stream ends between two.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut length = [0; 4];
        match from.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::other(format!("a frame of {length} bytes is not Kafka's")));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Ok(Some(Frame(bytes)))
    }

    /// With its length, as it goes over a connection.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("no frame is longer");
        [&length.to_be_bytes(), &*self.0].concat()
    }

    fn number(&self, at: usize) -> i32 {
        let bytes = self.0.get(at..at + 4).expect("no frame is shorter");
        i32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }

    /// Of a request.
    pub fn api(&self) -> Api {
        Api::new((self.number(0) >> 16) as i16)
    }

    /// Of a request: the number that its answer repeats.
    pub fn correlation(&self) -> i32 {
        self.number(4)
    }

    /// The same, of an answer.
    pub fn answers(&self) -> i32 {
        self.number(0)
    }

    /// What an answer says, to another request.
    pub fn answering(&self, correlation: i32) -> Frame {
        Frame([&correlation.to_be_bytes(), &self.0[4..]].concat())
    }

    /// Of a request of a producer of outputs, whose id is the group's name and the partition: the partition.
    pub fn producer_of(&self, group: &str) -> Option<u32> {
        let group = format!("{group}-");
        let head = &self.0[..self.0.len().min(HEAD_BYTES)];
        let at = head
            .windows(group.len())
            .position(|window| window == group.as_bytes())?
            + group.len();
        let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(&head[at..at + digits]).ok()?.parse().ok()
    }

    /// Whether a text is anywhere in it: a topic, a group, a transactional id.
    pub fn has(&self, text: &str) -> bool {
        let text = text.as_bytes();
        text.is_empty() || self.0.windows(text.len()).any(|window| window == text)
    }
}
