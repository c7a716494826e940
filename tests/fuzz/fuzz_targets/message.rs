//! The bodies that the control plane and its nodes send each other.
#![no_main]

use leasehold::protocol::records::{RecordsAnswer, RecordsRequest};
use leasehold::protocol::{
    AttestAnswer, AttestRequest, CredentialAnswer, CredentialRequest, EnrolAnswer, EnrolRequest, Event, GrantAnswer,
    GrantRequest, LogsRequest, Refused, TasksEnded, WithdrawalsApplied, decode, encode,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, body)) = bytes.split_first() else { return };
    macro_rules! read {
        ($($number:literal => $message:ty,)*) => {
            match kind % 14 {
                $($number => {
                    // What is read can be written and is the same then.
                    if let Ok(message) = decode::<$message>(body) {
                        let written = encode(&message).expect("what was read");
                        let again = decode::<$message>(&written).expect("what was written");
                        assert_eq!(encode(&again), Ok(written));
                    }
                })*
                _ => {}
            }
        };
    }
    read! {
        0 => EnrolRequest, 1 => EnrolAnswer, 2 => AttestRequest, 3 => AttestAnswer, 4 => LogsRequest,
        5 => CredentialRequest, 6 => CredentialAnswer, 7 => GrantRequest, 8 => GrantAnswer, 9 => TasksEnded,
        10 => WithdrawalsApplied, 11 => RecordsRequest, 12 => RecordsAnswer, 13 => Event,
    }
    let _ = decode::<Refused>(body);
});
