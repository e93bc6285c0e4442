//! The ids of compact users, in cells of a few sizes.
//!
//! A text of its own would cost a pointer, a length and the allocator's rounding for each id. Here a number of four bytes
//! refers to a cell with all of a user's ids. Freed cells are used again by texts of the same size, and the memory of a
//! chunk without any is released: strangers choose the sizes, and what they used once must not stay.

/// Cells are multiples of this many bytes.
const STEP: usize = 8;
const CELLS_PER_CHUNK: usize = 256;
const HEAD: usize = 4;
/// The rest of a [`TextId`] is the size of the cell.
const NUMBER_BITS: u32 = 25;
const SIZES: usize = 1 << (32 - NUMBER_BITS);

/// The size of a cell in steps, then its number among the cells of this size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TextId(u32);

/// What a cell holds: the lengths, then the ids of user and device, then what is known of the client.
#[derive(Clone, Copy)]
pub(super) struct Text<'t> {
    pub user: &'t [u8],
    pub device: &'t [u8],
    /// Empty if nothing is known.
    pub client: &'t [u8],
}

#[derive(Default)]
struct Size {
    chunks: Vec<Chunk>,
    /// The numbers of the chunks with a free cell.
    open: Vec<u32>,
}

#[derive(Default)]
struct Chunk {
    /// Empty while no cell is in use.
    cells: Box<[u8]>,
    used: usize,
    /// Cells from this one on were never used.
    fresh: usize,
    /// The first of the freed cells, each of which holds the number of the next.
    freed: Option<u8>,
}

impl Chunk {
    /// Returns the number of a free cell, which is in use from here on.
    fn take(&mut self, cell_bytes: usize) -> usize {
        if self.cells.is_empty() {
            self.cells = vec![0; CELLS_PER_CHUNK * cell_bytes].into_boxed_slice();
        }
        self.used += 1;
        match self.freed {
            Some(number) => {
                let [more, next] = [0, 1].map(|byte| self.cells[usize::from(number) * cell_bytes + byte]);
                self.freed = (more != 0).then_some(next);
                number.into()
            }
            None => {
                self.fresh += 1;
                self.fresh - 1
            }
        }
    }

    fn give_back(&mut self, number: usize, cell_bytes: usize) {
        self.used -= 1;
        if self.used == 0 {
            *self = Chunk::default();
            return;
        }
        let next = [self.freed.is_some().into(), self.freed.unwrap_or_default()];
        self.cells[number * cell_bytes..][..next.len()].copy_from_slice(&next);
        self.freed = Some(number as u8);
    }
}

pub(super) struct Texts(Vec<Size>);

impl TextId {
    fn size(self) -> usize {
        (self.0 >> NUMBER_BITS) as usize
    }

    fn number(self) -> usize {
        (self.0 & ((1 << NUMBER_BITS) - 1)) as usize
    }
}

impl Texts {
    pub fn new() -> Texts {
        Texts(Vec::new())
    }

    /// Stores ids. Returns `None` if they are too long or there are too many.
    pub fn put(&mut self, user: &str, device: &str, client: &str) -> Option<TextId> {
        let (user_len, device_len) = (u8::try_from(user.len()).ok()?, u8::try_from(device.len()).ok()?);
        let client_len = u16::try_from(client.len()).ok()?.to_le_bytes();
        let size = (HEAD + user.len() + device.len() + client.len()).div_ceil(STEP);
        if size >= SIZES {
            return None;
        }
        if self.0.len() <= size {
            self.0.resize_with(size + 1, Size::default);
        }
        let of_size = &mut self.0[size];
        let chunk_number = match of_size.open.last() {
            Some(number) => *number as usize,
            None => {
                let number = of_size.chunks.len();
                if (number * CELLS_PER_CHUNK) >> NUMBER_BITS != 0 {
                    return None;
                }
                of_size.chunks.push(Chunk::default());
                of_size.open.push(number as u32);
                number
            }
        };
        let chunk = &mut of_size.chunks[chunk_number];
        let number = chunk.take(size * STEP);
        if chunk.used == CELLS_PER_CHUNK {
            of_size.open.pop();
        }
        let cell = &mut chunk.cells[number * size * STEP..][..size * STEP];
        let number = chunk_number * CELLS_PER_CHUNK + number;
        cell[..HEAD].copy_from_slice(&[user_len, device_len, client_len[0], client_len[1]]);
        let mut rest = &mut cell[HEAD..];
        for part in [user, device, client] {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part.as_bytes());
            rest = behind;
        }
        Some(TextId((size as u32) << NUMBER_BITS | number as u32))
    }

    fn cell(&self, id: TextId) -> &[u8] {
        let (size, number) = (id.size(), id.number());
        let cells = &self.0[size].chunks[number / CELLS_PER_CHUNK].cells;
        &cells[number % CELLS_PER_CHUNK * size * STEP..][..size * STEP]
    }

    /// Returns the id of the user only.
    pub fn user(&self, id: TextId) -> &[u8] {
        let cell = self.cell(id);
        &cell[HEAD..][..cell[0].into()]
    }

    /// Returns the id of the device only.
    pub fn device(&self, id: TextId) -> &[u8] {
        let cell = self.cell(id);
        &cell[HEAD + usize::from(cell[0])..][..cell[1].into()]
    }

    /// Reads the memory that the others read first.
    pub fn touch(&self, id: TextId) {
        std::hint::black_box(self.cell(id)[0]);
    }

    pub fn get(&self, id: TextId) -> Text<'_> {
        let cell = self.cell(id);
        let (user, rest) = cell[HEAD..].split_at(cell[0].into());
        let (device, rest) = rest.split_at(cell[1].into());
        let client = &rest[..u16::from_le_bytes([cell[2], cell[3]]).into()];
        Text { user, device, client }
    }

    pub fn free(&mut self, id: TextId) {
        let of_size = &mut self.0[id.size()];
        let number = id.number() / CELLS_PER_CHUNK;
        let chunk = &mut of_size.chunks[number];
        if chunk.used == CELLS_PER_CHUNK {
            of_size.open.push(number as u32);
        }
        chunk.give_back(id.number() % CELLS_PER_CHUNK, id.size() * STEP);
    }
}

/// Returns the text of bytes that were copied from a text.
pub(super) fn text(bytes: &[u8]) -> &str {
    let text = std::str::from_utf8(bytes);
    debug_assert!(text.is_ok(), "a cell holds what a text was copied from");
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_read_as_it_was_stored_whatever_is_freed_meanwhile() {
        let mut x: u64 = 1;
        let mut draw = |below: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) % below
        };
        let mut texts = Texts::new();
        let mut model: Vec<(TextId, [String; 3])> = Vec::new();
        for step in 0..20_000_u64 {
            if draw(5) < 3 || model.is_empty() {
                let mut name = |most: u64| {
                    let length = draw(most + 1) as usize;
                    format!("{step}é").repeat(most as usize)[..]
                        .chars()
                        .take(length / 2)
                        .collect::<String>()
                };
                let ids = [name(128), name(128), name(256)];
                let id = texts
                    .put(&ids[0], &ids[1], &ids[2])
                    .expect("within the bounds of the rules");
                model.push((id, ids));
            } else {
                let (id, _) = model.swap_remove(draw(model.len() as u64) as usize);
                texts.free(id);
            }
            if step % 1_000 == 0 {
                for (id, [user, device, client]) in &model {
                    let found = texts.get(*id);
                    assert_eq!(
                        [text(found.user), text(found.device), text(found.client)],
                        [user, device, client]
                    );
                }
            }
        }
        for (id, _) in model {
            texts.free(id);
        }
        let chunks = texts.0.iter().flat_map(|size| &size.chunks);
        assert!(chunks.clone().count() > 20 && chunks.into_iter().all(|chunk| chunk.cells.is_empty()));
        assert_eq!(texts.put(&"u".repeat(256), "d", ""), None);
        assert_eq!(texts.put("u", "d", &"c".repeat(2_000)), None);
    }
}
