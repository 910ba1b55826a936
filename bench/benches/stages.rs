//! What does each stage of a packet cost by itself? Nanoseconds per packet of parsing, of rewriting by each method, of checksums. Look-ups and expiry are
//! in `table`, choices in `schedulers`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

mod briefly;

use briefly::briefly;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shunt_bench::stand::frames::{FRAME, datagram, segment};
use shunt_bench::stand::{VIP, client};
use shunt_dataplane::forward::{dr, nat, tunnel};
use shunt_dataplane::packet::checksum::Sum;
use shunt_dataplane::packet::plain::{HeaderV4, Translation};
use shunt_dataplane::packet::{Extent, Meta, Packet, Parsed, Plain, V4, parse};
use shunt_dataplane::port::BURST;
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use shunt_dataplane::service::{Hop, PortId, Tunnel};
use std::hint::black_box;

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, make) in [
        ("udp", (|n| datagram(client(n), VIP)) as fn(u32) -> [u8; FRAME]),
        ("tcp", |n| segment(client(n), VIP, 0x10)),
    ] {
        let frames: Vec<_> = (0..BURST as u32).map(make).collect();
        group.bench_function(name, |b| {
            b.iter(|| frames.iter().for_each(|frame| _ = black_box(parse(black_box(frame)))));
        });
        let mut chunks: Vec<_> = frames.iter().map(chunk).collect();
        let mut extent = Extent::new(HEADROOM, FRAME, PortId(0));
        group.bench_function(format!("plain {name}"), |b| {
            b.iter(|| {
                for chunk in &mut chunks {
                    let packet = Packet::new(chunk, &mut extent);
                    black_box(Plain::<HeaderV4>::of(black_box(&packet)).map(Plain::tuple));
                }
            });
        });
    }
    group.finish();
}

fn chunk(frame: &[u8; FRAME]) -> [u8; CHUNK] {
    let mut chunk = [0; CHUNK];
    chunk[HEADROOM..HEADROOM + FRAME].copy_from_slice(frame);
    chunk
}

/// A burst of frames that can be rewritten again and again.
fn rewriting(c: &mut Criterion) {
    let hop = Hop { mtu: 1500, macs: [2; 12], ..Hop::default() };
    let way = tunnel::Way::V4(tunnel::Ends { source: V4(0x0a01_ff01), destination: V4(0x0a01_0001) });
    let plain = |packet: &mut Packet, rewrite: &dyn Fn(&mut Plain<HeaderV4>)| {
        rewrite(Plain::again(packet).expect("room for headers"));
    };
    // The changes of none, so that checksums stay as they are, however often.
    let by = black_box(Translation::default());
    let (local, server) = ((V4(0x0a01_0101), 2000), (V4(0x0a01_0001), 8080));
    type Rewrite<'a> = &'a dyn Fn(&mut Packet, &Meta<V4>);
    let methods: [(&str, Rewrite); 7] = [
        ("plain dr", &|packet, _| plain(packet, &|plain| plain.age())),
        ("plain nat", &|packet, _| {
            plain(packet, &|plain| _ = plain.translate(None, Some(server), by));
        }),
        ("plain fullnat", &|packet, _| {
            plain(packet, &|plain| _ = plain.translate(Some(local), Some(server), by));
        }),
        ("dr", &|packet, meta| dr::request(packet, meta, &hop)),
        ("nat", &|packet, meta| nat::request(packet, meta, server, &hop)),
        ("fullnat", &|packet, meta| nat::both(packet, meta, local, server, &hop)),
        ("tun", &|packet, meta| tunnel::request(packet, meta, Tunnel::default(), way, &hop, (7, 8))),
    ];
    let mut group = c.benchmark_group("rewrite");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, rewrite) in methods {
        let mut chunks: Vec<_> = (0..BURST as u32).map(|n| chunk(&datagram(client(n), VIP))).collect();
        let metas: Vec<_> = chunks
            .iter()
            .map(|chunk| match parse(&chunk[HEADROOM..HEADROOM + FRAME]) {
                Ok(Parsed::V4(meta)) => meta,
                other => panic!("{other:?}"),
            })
            .collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                for (chunk, meta) in chunks.iter_mut().zip(&metas) {
                    // Its time to live would run out.
                    chunk[HEADROOM + 22] = 64;
                    let mut extent = Extent::new(HEADROOM, FRAME, PortId(0));
                    rewrite(&mut Packet::new(chunk, &mut extent), black_box(meta));
                }
            });
        });
    }
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for bytes in [20, 60, 1480] {
        let data = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| Sum::default().bytes(black_box(&data)).field());
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = briefly(); targets = parsing, rewriting, checksums }
criterion_main!(benches);
