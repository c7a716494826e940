use proptest::prelude::*;

use super::*;

/// A frame: type, flags, payload.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE.as_slice(), &frame(4, 0, b""), &frames.concat()].concat()
}

/// What `bytes` become when they arrive in pieces of `size`.
fn passed(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut authority = Authority::default();
    let mut bytes = bytes.to_vec();
    for piece in bytes.chunks_mut(size) {
        authority.pass(piece);
    }
    bytes
}

/// A literal field as C-core writes it: with indexing, name and value in plain text.
fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[first], string(name).as_slice(), &string(value)].concat()
}

fn string(text: &[u8]) -> Vec<u8> {
    let mut length = Vec::new();
    match u8::try_from(text.len()) {
        Ok(short @ 0..127) => length.push(short),
        _ => {
            length.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                length.push(u8::try_from(rest % 128).unwrap() | 0x80);
                rest /= 128;
            }
            length.push(u8::try_from(rest).unwrap());
        }
    }
    [length.as_slice(), text].concat()
}

const SOCKET: &[u8] = b"%2Frun%2Flease@hold%2Fworkload.sock";
const FIXED: &[u8] = b"-2Frun-2Flease-hold-2Fworkload.sock";

/// Every way to write the field, around others that must stay as they are.
fn blocks(authority: &[u8]) -> Vec<Vec<u8>> {
    let others = |middle: Vec<u8>| {
        let indexed = vec![0x83, 0x86];
        let size = vec![0x3f, 0xe1, 0x1f];
        let path = [&[0x44], string(b"/SpiffeWorkloadAPI/%Fetch").as_slice()].concat();
        let long = literal(0x00, b"x-long%", &b"%".repeat(20_000));
        [size, indexed, path, middle, literal(0x10, b":authorit", b"%"), literal(0x40, b":authority2", b"%"), long]
            .concat()
    };
    vec![
        others(literal(0x40, b":authority", authority)),
        others(literal(0x00, b":authority", authority)),
        others(literal(0x10, b":authority", authority)),
        others([&[0x41], string(authority).as_slice()].concat()),
        others([&[0x01], string(authority).as_slice()].concat()),
        others([&[0x11], string(authority).as_slice()].concat()),
    ]
}

#[test]
fn only_the_authority_changes_however_it_is_written_and_cut() {
    for (before, after) in blocks(SOCKET).into_iter().zip(blocks(FIXED)) {
        let framed = |block: &[u8]| {
            let (first, rest) = block.split_at(12);
            let (second, third) = rest.split_at(30);
            let padded = [&[3, 0, 0, 0, 0, 16], first, b"%%%"].concat();
            connection(&[
                frame(HEADERS, END_HEADERS, block),
                frame(0, 1, b"\0\0\0\0\0%"),
                frame(HEADERS, PADDED | PRIORITY, &padded),
                frame(CONTINUATION, 0, b""),
                frame(CONTINUATION, 0, second),
                frame(CONTINUATION, END_HEADERS, third),
                frame(HEADERS, END_HEADERS, b""),
                frame(HEADERS, END_HEADERS | PRIORITY, &[b"%%%%%", block].concat()),
            ])
        };
        for size in [1, 2, 7, 64, 1 << 20] {
            assert!(passed(&framed(&before), size) == framed(&after), "pieces of {size}");
        }
    }
}

#[test]
fn a_proper_authority_stays() {
    for name in ["localhost", "a.b-c_d~e", ""] {
        let bytes = connection(&[frame(HEADERS, END_HEADERS, &literal(0x40, b":authority", name.as_bytes()))]);
        assert_eq!(passed(&bytes, 5), bytes);
    }
}

#[test]
fn what_is_not_understood_passes() {
    let field = literal(0x40, b":authority", b"%");
    for start in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // An integer without end, padding longer than its frame, priority cut short, a block cut short,
        // CONTINUATION without HEADERS, HEADERS inside a block, Huffman.
        connection(&[frame(HEADERS, END_HEADERS, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f])]),
        connection(&[frame(HEADERS, END_HEADERS | PADDED, &[9, 0x82])]),
        connection(&[frame(HEADERS, END_HEADERS | PADDED, b"")]),
        connection(&[frame(HEADERS, END_HEADERS | PRIORITY, b"%%%%")]),
        connection(&[frame(HEADERS, END_HEADERS, &[0x40, 5, b':'])]),
        connection(&[frame(CONTINUATION, END_HEADERS, b"")]),
        connection(&[frame(HEADERS, 0, &[0x82])]),
    ] {
        let bytes = [start, frame(HEADERS, END_HEADERS, &field)].concat();
        assert_eq!(passed(&bytes, 3), bytes);
    }
    let coded = [&[0x41, 0x82], b"%%".as_slice(), &[0x40, 0x81, b'%', 1, b'%']].concat();
    let bytes = connection(&[frame(HEADERS, END_HEADERS, &coded)]);
    assert_eq!(passed(&bytes, 3), bytes);
}

#[tokio::test]
async fn a_client_that_does_not_greet_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut client, server) = tokio::io::duplex(64);
    let mut server = Readable::new(server, Duration::from_millis(100));
    client.write_all(&PREFACE[..20]).await.unwrap();
    let mut bytes = Vec::new();
    let started = Instant::now();
    assert_eq!(server.read_to_end(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(bytes.len(), 20);
    assert!(started.elapsed() >= Duration::from_millis(100));

    let (mut client, server) = tokio::io::duplex(64);
    let mut server = Readable::new(server, Duration::from_millis(100));
    client.write_all(&connection(&[])).await.unwrap();
    let reading = tokio::time::timeout(Duration::from_millis(300), server.read_to_end(&mut bytes)).await;
    assert!(reading.is_err(), "a client that has greeted may be silent");
}

prop_compose! {
    fn field()(
        first in prop_oneof![Just(0x40u8), Just(0x00), Just(0x10), Just(0x41), Just(0x01), any::<u8>()],
        name in prop_oneof![Just(b":authority".to_vec()), proptest::collection::vec(any::<u8>(), 0..12)],
        value in proptest::collection::vec(any::<u8>(), 0..200),
    ) -> Vec<u8> {
        if first & 0x0f == 0 { literal(first, &name, &value) } else { [&[first], string(&value).as_slice()].concat() }
    }
}

prop_compose! {
    fn any_frame()(
        kind in prop_oneof![Just(HEADERS), Just(CONTINUATION), 0u8..12],
        flags in prop_oneof![Just(END_HEADERS), Just(0), any::<u8>()],
        fields in proptest::collection::vec(field(), 0..4),
        cut in 0usize..40,
    ) -> Vec<u8> {
        let payload = fields.concat();
        frame(kind, flags, &payload[cut.min(payload.len() / 2)..])
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter_and_bytes_only_become_dashes(
        frames in proptest::collection::vec(any_frame(), 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..40),
        greeted in any::<bool>(),
        sizes in proptest::collection::vec(1usize..50, 1..20),
    ) {
        let bytes = if greeted { [connection(&frames), noise].concat() } else { [noise, frames.concat()].concat() };
        let whole = passed(&bytes, bytes.len().max(1));
        prop_assert_eq!(whole.len(), bytes.len());
        for (before, after) in bytes.iter().zip(&whole) {
            prop_assert!(before == after || *after == b'-');
        }
        let mut authority = Authority::default();
        let mut pieces = bytes.clone();
        let mut rest = pieces.as_mut_slice();
        for size in sizes.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, after) = rest.split_at_mut((*size).min(rest.len()));
            authority.pass(piece);
            rest = after;
        }
        prop_assert_eq!(pieces, whole);
    }
}
