//! What nf_tables understands: tables, chains, sets, rules, and the expressions rules are made of.
//!
//! A rule is a list of expressions that runs from left to right over registers of four bytes. An expression loads
//! something into a register, or ends the rule unless a register is as it wants; the last one is the verdict. An
//! expression that cannot be evaluated (a header that is not there) ends its rule too, so a rule applies only to
//! packets that have all it asks for. A concatenated key lies in consecutive registers, each part padded to four bytes;
//! the methods here count the registers.
//!
//! Names and numbers are those of uapi/linux/netfilter/nf_tables.h.

use super::netlink::{Attributes, Batch};

/// A table of the inet family.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
}

impl Table {
    /// Creates the table, to be destroyed by the kernel with the socket that creates it.
    pub(super) fn create(&self, batch: &mut Batch) {
        const FLAG_OWNER: u32 = 2;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        batch.request("creating an nftables table", libc::NFT_MSG_NEWTABLE, flags, |a| {
            a.string(1, &self.name); // NFTA_TABLE_NAME
            a.number(2, FLAG_OWNER); // NFTA_TABLE_FLAGS
        });
    }

    /// Destroys the table and all that is in it.
    pub(super) fn destroy(&self, batch: &mut Batch) {
        batch.request("destroying an nftables table", libc::NFT_MSG_DELTABLE, 0, |a| {
            a.string(1, &self.name); // NFTA_TABLE_NAME
        });
    }

    /// Creates a chain; with a priority, one that sees every packet before routing. Its policy is to accept.
    pub(super) fn chain(&self, batch: &mut Batch, name: &str, priority: Option<i32>) {
        const PREROUTING: u32 = 0;
        let flags = libc::NLM_F_CREATE;
        batch.request("creating an nftables chain", libc::NFT_MSG_NEWCHAIN, flags, |a| {
            a.string(1, &self.name); // NFTA_CHAIN_TABLE
            a.string(3, name); // NFTA_CHAIN_NAME
            let Some(priority) = priority else { return };
            a.nest(4, |hook| {
                // NFTA_CHAIN_HOOK
                hook.number(1, PREROUTING); // NFTA_HOOK_HOOKNUM
                hook.bytes(2, &priority.to_be_bytes()); // NFTA_HOOK_PRIORITY
            });
            a.string(7, "filter"); // NFTA_CHAIN_TYPE
            a.number(5, ACCEPT); // NFTA_CHAIN_POLICY
        });
    }

    /// Removes all rules of a chain.
    pub(super) fn clear(&self, batch: &mut Batch, chain: &str) {
        batch.request("clearing an nftables chain", libc::NFT_MSG_DELRULE, 0, |a| {
            a.string(1, &self.name); // NFTA_RULE_TABLE
            a.string(2, chain); // NFTA_RULE_CHAIN
        });
    }

    /// Creates a set with keys of these parts. Its elements come and go one by one.
    pub(super) fn set(&self, batch: &mut Batch, number: u32, name: &str, parts: &[Part]) {
        // The kernel looks at neither type nor byte order; `nft list ruleset` shows elements by them.
        let shown = parts.iter().fold(0, |shown, part| shown << 6 | *part as u32);
        let flags = libc::NLM_F_CREATE;
        batch.request("creating an nftables set", libc::NFT_MSG_NEWSET, flags, |a| {
            a.string(1, &self.name); // NFTA_SET_TABLE
            a.string(2, name); // NFTA_SET_NAME
            a.number(3, 0); // NFTA_SET_FLAGS
            a.number(4, shown); // NFTA_SET_KEY_TYPE
            let registers: usize = parts.iter().map(|part| part.registers()).sum();
            a.number(5, (registers * REGISTER_BYTES) as u32); // NFTA_SET_KEY_LEN
            a.number(10, number); // NFTA_SET_ID: for references within the batch; we refer by name
            if let [Part::Interface] = parts {
                // NFTA_SET_USERDATA: type, length, value; the key is in the machine's byte order.
                let [v0, v1, v2, v3] = 1_u32.to_ne_bytes();
                a.bytes(13, &[0, 4, v0, v1, v2, v3]);
            }
        });
    }

    /// Adds elements to a set. One that is there already is no error.
    pub(super) fn add(&self, batch: &mut Batch, set: &str, keys: &[Vec<u8>]) {
        let flags = libc::NLM_F_CREATE;
        self.elements(batch, "adding to an nftables set", libc::NFT_MSG_NEWSETELEM, flags, set, keys);
    }

    /// Removes elements from a set. All must be there.
    pub(super) fn remove(&self, batch: &mut Batch, set: &str, keys: &[Vec<u8>]) {
        let what = "removing from an nftables set";
        self.elements(batch, what, libc::NFT_MSG_DELSETELEM, 0, set, keys);
    }

    fn elements(
        &self,
        batch: &mut Batch,
        what: &'static str,
        kind: i32,
        flags: i32,
        set: &str,
        keys: &[Vec<u8>],
    ) {
        for some in keys.chunks(ELEMENTS) {
            batch.request(what, kind, flags, |a| {
                a.string(1, &self.name); // NFTA_SET_ELEM_LIST_TABLE
                a.string(2, set); // NFTA_SET_ELEM_LIST_SET
                a.nest(3, |list| {
                    // NFTA_SET_ELEM_LIST_ELEMENTS
                    for key in some {
                        list.nest(LIST_ELEMENT, |element| {
                            // NFTA_SET_ELEM_KEY
                            element.nest(1, |data| data.bytes(DATA_VALUE, key));
                        });
                    }
                });
            });
        }
    }

    /// Appends a rule to a chain.
    pub(super) fn rule(&self, batch: &mut Batch, chain: &str, expressions: impl FnOnce(&mut Rule<'_, '_>)) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        batch.request("creating an nftables rule", libc::NFT_MSG_NEWRULE, flags, |a| {
            a.string(1, &self.name); // NFTA_RULE_TABLE
            a.string(2, chain); // NFTA_RULE_CHAIN
            // NFTA_RULE_EXPRESSIONS
            a.nest(4, |list| expressions(&mut Rule { list, loaded: 0 }));
        });
    }
}

/// A part of a set's key, by nft's number for its type.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Part {
    AddressV4 = 7,
    AddressV6 = 8,
    Protocol = 12,
    Port = 13,
    IcmpType = 14,
    Interface = 20,
}

impl Part {
    fn registers(self) -> usize {
        match self {
            Part::AddressV6 => 4,
            _ => 1,
        }
    }
}

/// What `meta` knows of a packet.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Meta {
    /// The interface it came in by, in the machine's byte order.
    InputInterface = 4,
    /// IPv4 or IPv6.
    Family = 15,
    /// The transport protocol, also of a later fragment. In IPv6 the kind of the first header that is no extension
    /// header; but authentication, which is one, ends the walk.
    Protocol = 16,
    /// To us, to all, to some, or to another.
    PacketType = 19,
}

/// From where a packet's bytes are counted.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Base {
    Network = 1,
    /// What [`Meta::Protocol`] says. Not there in a later fragment.
    Transport = 2,
}

/// What a rule does with the packets it applies to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    Accept,
    Drop,
    /// Goes on in another chain and does not come back.
    Goto(&'a str),
    /// Goes on in another chain, and comes back if that does not decide.
    Jump(&'a str),
    /// Goes back.
    Return,
}

/// A rule while its expressions are written.
#[derive(Debug)]
pub(super) struct Rule<'r, 'a> {
    list: &'r mut Attributes<'a>,
    /// Registers in use.
    loaded: u32,
}

impl Rule<'_, '_> {
    /// Loads what `meta` knows into the next register.
    pub(super) fn meta(&mut self, key: Meta) -> &mut Self {
        let register = self.next(REGISTER_BYTES as u32);
        self.expression("meta", |a| {
            a.number(1, register); // NFTA_META_DREG
            a.number(2, key as u32); // NFTA_META_KEY
        })
    }

    /// Loads bytes of the packet into as many registers as they need.
    pub(super) fn payload(&mut self, base: Base, offset: u32, length: u32) -> &mut Self {
        let register = self.next(length);
        self.expression("payload", |a| {
            a.number(1, register); // NFTA_PAYLOAD_DREG
            a.number(2, base as u32); // NFTA_PAYLOAD_BASE
            a.number(3, offset); // NFTA_PAYLOAD_OFFSET
            a.number(4, length); // NFTA_PAYLOAD_LEN
        })
    }

    /// Loads bytes of the IPv6 extension header of this kind, the first if there are several, into the next register.
    pub(super) fn extension(&mut self, kind: u8, offset: u32, length: u32) -> &mut Self {
        let register = self.next(length);
        self.expression("exthdr", |a| {
            a.number(1, register); // NFTA_EXTHDR_DREG
            a.bytes(2, &[kind]); // NFTA_EXTHDR_TYPE
            a.number(3, offset); // NFTA_EXTHDR_OFFSET
            a.number(4, length); // NFTA_EXTHDR_LEN
        })
    }

    /// Keeps only these bits of what was loaded last.
    pub(super) fn mask(&mut self, bits: &[u8]) -> &mut Self {
        let registers = bits.len().div_ceil(REGISTER_BYTES) as u32;
        let register = FIRST_REGISTER + self.loaded - registers;
        self.expression("bitwise", |a| {
            a.number(1, register); // NFTA_BITWISE_SREG
            a.number(2, register); // NFTA_BITWISE_DREG
            a.number(3, bits.len() as u32); // NFTA_BITWISE_LEN
            a.nest(4, |data| data.bytes(DATA_VALUE, bits)); // NFTA_BITWISE_MASK
            a.nest(5, |data| data.bytes(DATA_VALUE, &vec![0; bits.len()])); // NFTA_BITWISE_XOR
        })
    }

    /// Goes on if what is loaded equals these bytes.
    pub(super) fn equals(&mut self, bytes: &[u8]) -> &mut Self {
        self.compare(0, bytes) // NFT_CMP_EQ
    }

    /// Goes on if what is loaded differs from these bytes.
    pub(super) fn differs(&mut self, bytes: &[u8]) -> &mut Self {
        self.compare(1, bytes) // NFT_CMP_NEQ
    }

    /// Goes on if what is loaded is a number (in network order) not below this one. It may be compared once more.
    pub(super) fn is_at_least(&mut self, bytes: &[u8]) -> &mut Self {
        self.compare(5, bytes) // NFT_CMP_GTE
    }

    /// Goes on if what is loaded is a number (in network order) not above this one. It may be compared once more.
    pub(super) fn is_at_most(&mut self, bytes: &[u8]) -> &mut Self {
        self.compare(3, bytes) // NFT_CMP_LTE
    }

    /// Goes on if what is loaded is in the set.
    pub(super) fn is_in(&mut self, set: &str) -> &mut Self {
        self.lookup(set, 0)
    }

    /// Goes on if what is loaded is not in the set.
    pub(super) fn is_not_in(&mut self, set: &str) -> &mut Self {
        self.lookup(set, 1) // NFT_LOOKUP_F_INV
    }

    /// Ends the rule.
    pub(super) fn verdict(&mut self, verdict: Verdict<'_>) {
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (ACCEPT, None),
            Verdict::Goto(chain) => (libc::NFT_GOTO as u32, Some(chain)),
            Verdict::Jump(chain) => (libc::NFT_JUMP as u32, Some(chain)),
            Verdict::Return => (libc::NFT_RETURN as u32, None),
        };
        self.expression("immediate", |a| {
            a.number(1, 0); // NFTA_IMMEDIATE_DREG: the verdict register
            a.nest(2, |data| {
                // NFTA_IMMEDIATE_DATA
                data.nest(2, |verdict| {
                    // NFTA_DATA_VERDICT
                    verdict.number(1, code); // NFTA_VERDICT_CODE
                    if let Some(chain) = chain {
                        verdict.string(2, chain); // NFTA_VERDICT_CHAIN
                    }
                });
            });
        });
    }

    fn compare(&mut self, operation: u32, bytes: &[u8]) -> &mut Self {
        self.loaded = 0;
        self.expression("cmp", |a| {
            a.number(1, FIRST_REGISTER); // NFTA_CMP_SREG
            a.number(2, operation); // NFTA_CMP_OP
            a.nest(3, |data| data.bytes(DATA_VALUE, bytes)); // NFTA_CMP_DATA
        })
    }

    fn lookup(&mut self, set: &str, flags: u32) -> &mut Self {
        self.loaded = 0;
        self.expression("lookup", |a| {
            a.string(1, set); // NFTA_LOOKUP_SET
            a.number(2, FIRST_REGISTER); // NFTA_LOOKUP_SREG
            a.number(5, flags); // NFTA_LOOKUP_FLAGS
        })
    }

    /// The first of the next registers, for so many bytes.
    fn next(&mut self, bytes: u32) -> u32 {
        let register = FIRST_REGISTER + self.loaded;
        self.loaded += bytes.div_ceil(REGISTER_BYTES as u32);
        register
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.list.nest(LIST_ELEMENT, |a| {
            a.string(1, name); // NFTA_EXPR_NAME
            a.nest(2, data); // NFTA_EXPR_DATA
        });
        self
    }
}

/// Elements in one request: 1000 keys of 24 bytes are 36 KB, and an attribute ends at 64 KiB.
const ELEMENTS: usize = 1000;

/// `NFT_REG32_00`, the first register of four bytes.
const FIRST_REGISTER: u32 = 8;

/// Bytes of a register.
const REGISTER_BYTES: usize = 4;

/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;

/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;

/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;
