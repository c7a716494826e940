//! The reference enforcement point: what a token permits, and tokens outside their job.

use leasehold::clock::WallTime;
use leasehold::codes;
use leasehold::credentials::token::{Presenter, ReuseWatch};
use proptest::prelude::*;
use serde_json::json;

use crate::signer::{NOW, Signer, claims, read, with};

#[test]
fn a_token_permits_what_it_names_and_nothing_else() {
    let ours = Signer::new(7);
    let details = json!([
        { "type": "ledger", "actions": ["append", "read"], "locations": ["eu"] },
        { "type": "ledger", "actions": ["read"], "locations": ["us"] },
        { "type": "mail", "actions": ["send"] },
        { "type": "disk", "locations": ["eu"] },
    ]);
    let token = read(&ours.token(&with("authorization_details", Some(details))), &ours.keys()).unwrap();
    let permitted = [("ledger", "append", "eu"), ("ledger", "read", "eu"), ("ledger", "read", "us")];
    for kind in ["ledger", "mail", "disk", "Ledger", "", "*"] {
        for action in ["append", "read", "send", "delete", "", "*"] {
            for location in ["eu", "us", "EU", "eu/", "", "*"] {
                let expected = permitted.contains(&(kind, action, location));
                assert_eq!(token.permits(kind, action, location), expected, "{kind} {action} {location}");
            }
        }
    }
    // Without any, a token grants its subject's name only.
    assert!(!read(&ours.token(&claims()), &ours.keys()).unwrap().permits("ledger", "read", "eu"));
}

proptest! {
    #[test]
    fn no_two_details_together_permit_what_neither_does(
        details in prop::collection::vec(
            ("[ab]", prop::collection::vec("[xyz]", 0..3), prop::collection::vec("[mno]", 0..3)), 0..4),
        asked in ("[ab]", "[xyz]", "[mno]"),
    ) {
        let ours = Signer::new(7);
        let listed: Vec<_> = details.iter().map(|(kind, actions, locations)| {
            json!({ "type": kind, "actions": actions, "locations": locations })
        }).collect();
        let token = read(&ours.token(&with("authorization_details", Some(json!(listed)))), &ours.keys()).unwrap();
        let (kind, action, location) = &asked;
        let expected = details.iter().any(|(k, a, l)| k == kind && a.contains(action) && l.contains(location));
        prop_assert_eq!(token.permits(kind, action, location), expected);
    }
}

#[test]
fn a_task_s_token_is_for_one_user_of_one_node() {
    let ours = Signer::new(7);
    let bound = |jti: &str| {
        let mut claims = with("task_id", Some(json!("job-1")));
        claims["jti"] = json!(jti);
        read(&ours.token(&claims), &ours.keys()).unwrap()
    };
    let free = read(&ours.token(&claims()), &ours.keys()).unwrap();
    let by = |node: &str, uid| Presenter { node: node.to_owned(), uid };
    let mut watch = ReuseWatch::default();
    let mut seen =
        |token: &_, by: &Presenter, now: WallTime| watch.seen(token, by, now).map_err(|refusal| refusal.code);
    let one = bound("one");
    seen(&one, &by("a", 1), NOW).unwrap();
    seen(&one, &by("a", 1), NOW).unwrap();
    for other in [by("a", 2), by("b", 1), by("b", 2)] {
        assert_eq!(seen(&one, &other, NOW), Err(codes::TOKEN_REUSED));
    }
    seen(&one, &by("a", 1), NOW).unwrap();
    // Another token is another matter; and one without a task is for all of its workload.
    seen(&bound("two"), &by("b", 1), NOW).unwrap();
    for by in [by("a", 1), by("b", 2), by("c", 3)] {
        seen(&free, &by, NOW).unwrap();
    }
}
