//! Makes inputs from others.

use crate::random::Random;

/// The longest input that is mutated further.
pub const BYTES_MAX: usize = 8 << 10;

/// Bytes that decide much: ends of ranges of numbers in the encodings that are read.
const TELLING: [&[u8]; 18] = [
    &[0],
    &[1],
    &[2],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0x80, 0x80, 0x80, 0x80, 0x10],
    &[0xfe, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff; 8],
    &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    b"9007199254740991",
    b"9007199254740992",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-1",
    b"1e400",
];

pub struct Mutation<'r> {
    random: &'r mut Random,
    corpus: &'r [Vec<u8>],
}

impl<'r> Mutation<'r> {
    pub fn of(random: &'r mut Random, corpus: &'r [Vec<u8>]) -> Mutation<'r> {
        Mutation { random, corpus }
    }

    /// Returns an input of the corpus with one to eight changes. `words` are what such inputs consist of.
    pub fn input(&mut self, words: &[&str]) -> Vec<u8> {
        let mut input = self.corpus[self.random.index(self.corpus.len())].clone();
        for _ in 0..1 + self.random.below(8) {
            self.change(&mut input, words);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, words: &[&str]) {
        let at = self.random.index(input.len() + 1);
        let until = at + self.random.index((input.len() - at).min(32) + 1);
        match self.random.below(10) {
            0 if at < input.len() => input[at] ^= 1 << self.random.below(8),
            1 if at < input.len() => input[at] = self.random.number() as u8,
            2 => drop(input.drain(at..until)),
            3 => {
                let again = input[at..until].to_vec();
                for _ in 0..1 + self.random.below(4) {
                    input.splice(at..at, again.iter().copied());
                }
            }
            4 => {
                let telling = TELLING[self.random.index(TELLING.len())];
                let end = input.len().min(at + telling.len());
                input.splice(at..end, telling.iter().copied());
            }
            5 => {
                let telling = TELLING[self.random.index(TELLING.len())];
                input.splice(at..until, telling.iter().copied());
            }
            6 if !words.is_empty() => {
                let word = words[self.random.index(words.len())];
                input.splice(at..until, word.bytes());
            }
            7 => {
                let other = &self.corpus[self.random.index(self.corpus.len())];
                let from = self.random.index(other.len() + 1);
                let to = from + self.random.index((other.len() - from).min(256) + 1);
                input.splice(at..until, other[from..to].iter().copied());
            }
            8 => input.truncate(at),
            _ => self.number(input),
        }
    }

    /// Replaces a number in digits by another one.
    fn number(&mut self, input: &mut Vec<u8>) {
        let begins = |at: &usize| input[*at].is_ascii_digit() && (*at == 0 || !input[*at - 1].is_ascii_digit());
        let numbers: Vec<usize> = (0..input.len()).filter(begins).collect();
        if numbers.is_empty() {
            return;
        }
        let at = numbers[self.random.index(numbers.len())];
        let digits = input[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let shift = self.random.below(64);
        let number = (self.random.number() >> shift).to_string();
        input.splice(at..at + digits, number.bytes());
    }
}
