//! A small assembler for BPF: instructions, labels, nothing else.
//!
//! An instruction is eight bytes: an opcode, two registers of four bits, a jump or memory offset of 16 bits and an
//! immediate of 32 bits, all in the machine's own byte order (kernel: `struct bpf_insn`, uapi/linux/bpf.h; the encoding
//! is RFC 9669). A jump counts in instructions, from the one after it.
//!
//! The assembler knows no types and checks no program: that is the verifier's work. It does check what would
//! silently jump to the wrong place: a label that is set twice, or never.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One encoded instruction.
pub(super) type Instruction = [u8; 8];

/// A register: R0 takes results, R1 to R5 arguments (a call destroys them), R6 to R9 survive calls, R10 is the stack's
/// top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    R10,
}

/// What an operation takes its second operand from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Register(Register),
    Immediate(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Operand {
        Operand::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(value: i32) -> Operand {
        Operand::Immediate(value)
    }
}

/// Width of a memory access.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Size {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// Arithmetic on all 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Alu {
    Add = 0x00,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    ExclusiveOr = 0xa0,
    Move = 0xb0,
}

/// When a branch is taken; comparisons are unsigned, of all 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum When {
    Equal = 0x10,
    Greater = 0x20,
    AnyBitOf = 0x40,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// The name of a place in a text; the number tells the rounds of an unrolled loop apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Label(&'static str, u8);

impl From<&'static str> for Label {
    fn from(name: &'static str) -> Label {
        Label(name, 0)
    }
}

impl From<(&'static str, u8)> for Label {
    fn from((name, round): (&'static str, u8)) -> Label {
        Label(name, round)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Label(name, round) = self;
        write!(f, "{name} ({round})")
    }
}

/// What is wrong with a text: always a bug in the text, never in what it is assembled for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    #[error("the label {0} is set twice")]
    Twice(Label),
    #[error("the label {0} is never set")]
    Missing(Label),
    #[error("the jump to {0} is too far")]
    TooFar(Label),
}

// Instruction classes and modes.
const LOAD_WIDE_IMMEDIATE: u8 = 0x18;
const LOAD: u8 = 0x61;
const STORE_IMMEDIATE: u8 = 0x62;
const STORE: u8 = 0x63;
const JUMP: u8 = 0x05;
const JUMP_32: u8 = 0x06;
const ALU_32: u8 = 0x04;
const ALU_64: u8 = 0x07;
/// In the 32-bit arithmetic class: from the machine's byte order to big-endian, or back, which is the same.
const TO_BIG_ENDIAN: u8 = 0xd0 | 0x08;
/// In a class with a second operand: it is a register.
const FROM_REGISTER: u8 = 0x08;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// As source register of a wide load: the immediate is a map's file descriptor.
const PSEUDO_MAP_FD: u8 = 1;

/// Collects instructions; [`Assembler::finish`] resolves the jumps.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Instruction>,
    labels: HashMap<Label, usize>,
    jumps: Vec<(usize, Label)>,
    twice: Option<Label>,
}

impl Assembler {
    /// Names the place of the next instruction.
    pub(super) fn label(&mut self, name: impl Into<Label>) {
        let label = name.into();
        if self.labels.insert(label, self.code.len()).is_some() {
            self.twice.get_or_insert(label);
        }
    }

    /// `to = to <operation> from`
    pub(super) fn alu(&mut self, operation: Alu, to: Register, from: impl Into<Operand>) {
        self.operate(ALU_64 | operation as u8, to, from.into());
    }

    /// `to = from`
    pub(super) fn set(&mut self, to: Register, from: impl Into<Operand>) {
        self.alu(Alu::Move, to, from);
    }

    /// Makes two bytes of a packet, as a load made a number of them, the number that they are.
    pub(super) fn host_order(&mut self, register: Register) {
        self.push(ALU_32 | TO_BIG_ENDIAN, register as u8, 0, 0, 16);
    }

    /// `to = *(size *)(base + offset)`, the upper bits zero.
    pub(super) fn load(&mut self, size: Size, to: Register, base: Register, offset: i16) {
        self.push(LOAD | size as u8, to as u8, base as u8, offset, 0);
    }

    /// `*(size *)(base + offset) = from`
    pub(super) fn store(&mut self, size: Size, base: Register, offset: i16, from: impl Into<Operand>) {
        match from.into() {
            Operand::Register(from) => {
                self.push(STORE | size as u8, base as u8, from as u8, offset, 0);
            }
            Operand::Immediate(value) => {
                self.push(STORE_IMMEDIATE | size as u8, base as u8, 0, offset, value);
            }
        }
    }

    /// `to = map`, as a reference the verifier knows. Takes the room of two instructions.
    pub(super) fn map(&mut self, to: Register, map: BorrowedFd<'_>) {
        self.push(LOAD_WIDE_IMMEDIATE, to as u8, PSEUDO_MAP_FD, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, 0);
    }

    /// Goes on at `label`.
    pub(super) fn jump(&mut self, label: impl Into<Label>) {
        self.jumps.push((self.code.len(), label.into()));
        self.push(JUMP, 0, 0, 0, 0);
    }

    /// Goes on at `label` if `left <when> right`.
    pub(super) fn branch(
        &mut self,
        when: When,
        left: Register,
        right: impl Into<Operand>,
        label: impl Into<Label>,
    ) {
        self.jumps.push((self.code.len(), label.into()));
        self.operate(JUMP | when as u8, left, right.into());
    }

    /// [`Assembler::branch`] on the low 32 bits: an immediate is then not sign-extended.
    pub(super) fn branch_32(
        &mut self,
        when: When,
        left: Register,
        right: impl Into<Operand>,
        label: impl Into<Label>,
    ) {
        self.jumps.push((self.code.len(), label.into()));
        self.operate(JUMP_32 | when as u8, left, right.into());
    }

    /// Calls a helper by its number: arguments in R1 to R5, result in R0.
    pub(super) fn call(&mut self, helper: i32) {
        self.push(JUMP | CALL, 0, 0, 0, helper);
    }

    /// Returns R0.
    pub(super) fn exit(&mut self) {
        self.push(JUMP | EXIT, 0, 0, 0, 0);
    }

    /// The program, its jumps resolved.
    pub(super) fn finish(mut self) -> Result<Vec<Instruction>, Mistake> {
        if let Some(label) = self.twice {
            return Err(Mistake::Twice(label));
        }
        for (from, label) in self.jumps {
            let to = *self.labels.get(&label).ok_or(Mistake::Missing(label))?;
            let distance = to as i64 - (from as i64 + 1);
            let distance = i16::try_from(distance).map_err(|_| Mistake::TooFar(label))?;
            self.code[from][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        Ok(self.code)
    }

    fn operate(&mut self, opcode: u8, left: Register, right: Operand) {
        match right {
            Operand::Register(right) => {
                self.push(opcode | FROM_REGISTER, left as u8, right as u8, 0, 0);
            }
            Operand::Immediate(value) => self.push(opcode, left as u8, 0, 0, value),
        }
    }

    fn push(&mut self, opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        // The two registers are bit fields in C, whose order follows the byte order.
        let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
        let [o0, o1] = offset.to_ne_bytes();
        let [i0, i1, i2, i3] = immediate.to_ne_bytes();
        self.code.push([opcode, registers, o0, o1, i0, i1, i2, i3]);
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use Register::*;

    fn bytes(text: impl FnOnce(&mut Assembler)) -> Vec<Instruction> {
        let mut assembler = Assembler::default();
        text(&mut assembler);
        assembler.finish().expect("the text has no mistake")
    }

    #[test]
    fn instructions_are_encoded_as_the_rfc_says() {
        type Text = fn(&mut Assembler);
        let table: [(Text, Instruction); 14] = [
            (|a| a.set(R0, 2), [0xb7, 0x00, 0, 0, 2, 0, 0, 0]),
            (|a| a.set(R9, R1), [0xbf, 0x19, 0, 0, 0, 0, 0, 0]),
            (|a| a.alu(Alu::Add, R2, -24), [0x07, 0x02, 0, 0, 0xe8, 0xff, 0xff, 0xff]),
            (|a| a.alu(Alu::Add, R1, R2), [0x0f, 0x21, 0, 0, 0, 0, 0, 0]),
            (|a| a.alu(Alu::And, R2, 15), [0x57, 0x02, 0, 0, 15, 0, 0, 0]),
            (|a| a.alu(Alu::ShiftLeft, R2, 2), [0x67, 0x02, 0, 0, 2, 0, 0, 0]),
            (|a| a.host_order(R1), [0xdc, 0x01, 0, 0, 16, 0, 0, 0]),
            (|a| a.load(Size::Word, R7, R1, 4), [0x61, 0x17, 4, 0, 0, 0, 0, 0]),
            (|a| a.load(Size::Half, R3, R6, -2), [0x69, 0x63, 0xfe, 0xff, 0, 0, 0, 0]),
            (|a| a.load(Size::Byte, R3, R6, 9), [0x71, 0x63, 9, 0, 0, 0, 0, 0]),
            (|a| a.store(Size::Byte, R10, -6, R3), [0x73, 0x3a, 0xfa, 0xff, 0, 0, 0, 0]),
            (|a| a.store(Size::Double, R10, -24, 0), [0x7a, 0x0a, 0xe8, 0xff, 0, 0, 0, 0]),
            (|a| a.call(51), [0x85, 0, 0, 0, 51, 0, 0, 0]),
            (Assembler::exit, [0x95, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(text), [expected]);
        }
    }

    #[test]
    fn a_map_is_a_wide_load_marked_as_a_descriptor() {
        let file = std::fs::File::open("/dev/null").expect("every Linux has it");
        let fd = std::os::fd::AsFd::as_fd(&file);
        let [i0, i1, i2, i3] = fd.as_raw_fd().to_ne_bytes();
        assert_eq!(bytes(|a| a.map(R1, fd)), [[0x18, 0x11, 0, 0, i0, i1, i2, i3], [0; 8]]);
    }

    #[test]
    fn jumps_count_from_the_next_instruction_in_both_directions() {
        let code = bytes(|a| {
            a.label("start");
            a.branch(When::Greater, R1, R7, "end");
            a.branch_32(When::NotEqual, R1, 7, "start");
            a.jump("end");
            a.exit();
            a.label("end");
            a.exit();
        });
        assert_eq!(code[0], [0x2d, 0x71, 3, 0, 0, 0, 0, 0]);
        assert_eq!(code[1], [0x56, 0x01, 0xfe, 0xff, 7, 0, 0, 0]);
        assert_eq!(code[2], [0x05, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn labels_are_set_exactly_once_and_within_reach() {
        let mut twice = Assembler::default();
        twice.label("here");
        twice.label("here");
        assert_eq!(twice.finish(), Err(Mistake::Twice("here".into())));

        let mut rounds = Assembler::default();
        rounds.label(("here", 1));
        rounds.label(("here", 2));
        assert_eq!(rounds.finish(), Ok(Vec::new()), "two rounds are two places");

        let mut missing = Assembler::default();
        missing.jump("nowhere");
        assert_eq!(missing.finish(), Err(Mistake::Missing("nowhere".into())));

        let mut far = Assembler::default();
        far.jump("far");
        (0..=i16::MAX).for_each(|_| far.exit());
        far.label("far");
        assert_eq!(far.finish(), Err(Mistake::TooFar("far".into())));
    }
}
