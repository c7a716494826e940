//! Planned updates: from one image to another, and what stops them.

use leasehold::clock::WallTime;
use leasehold::control_plane::reference::artifacts::{self, Inputs};
use leasehold::control_plane::reference::difference;
use leasehold::control_plane::reference::update::{Transition, plan};
use leasehold::tpm::Bank;
use leasehold::verify::references::{EventReference, ReferenceSet};
use leasehold::verify::runtime::Exclusion;

use crate::image::{kernel, uki};

const NOW: WallTime = WallTime(1_800_000_000);
const UNTIL: WallTime = WallTime(1_800_086_400);

fn inputs(kernel_text: &str, initrd: &str) -> Inputs {
    let bytes = uki("252.39-1", &kernel(kernel_text.as_bytes()), "quiet", initrd.as_bytes());
    Inputs { uki: Some((format!("{kernel_text}.efi"), bytes)), ..Inputs::default() }
}

fn set(kernel_text: &str) -> ReferenceSet {
    artifacts::set(&inputs(kernel_text, "one"), "edge", "uefi-uki", Bank::Sha256, kernel_text).unwrap().0
}

fn transition(name: &str) -> Transition<'_> {
    Transition { name, until: UNTIL, now: NOW }
}

#[test]
fn old_and_new_are_accepted_until_the_old_one_ends() {
    let before = set("56");
    let planned = plan(&before, &inputs("57", "two"), &transition("57")).unwrap();
    let after = &planned.set;
    assert_eq!((after.version, after.states.len()), (2, 2));
    assert_eq!((after.states[0].name.as_str(), after.states[0].until), ("56", Some(UNTIL)));
    assert_eq!((after.states[1].name.as_str(), after.states[1].until), ("57", None));
    assert_eq!(after.states[0].events, before.states[0].events);
    // What is predicted is what that image itself gives.
    let alone = artifacts::set(&inputs("57", "two"), "edge", "uefi-uki", Bank::Sha256, "57").unwrap().0;
    assert_eq!(after.states[1].events, alone.states[0].events);
    // Event by event, in words: command line and os-release stayed, so nothing is said of them.
    let about = |what: &str| planned.differences.iter().filter(|line| line.contains(what)).count();
    assert_eq!((about("PCR 4"), about("PCR 9"), about("PCR 11")), (2, 1, 2), "{:#?}", planned.differences);
    assert_eq!(about("PCR 11 event `UKI section .initrd`: "), 1, "{:#?}", planned.differences);
    assert!(planned.differences.iter().all(|line| line.contains(" → ")), "{:#?}", planned.differences);

    // The next update: the first state's end stays, and ends it.
    let later = plan(after, &inputs("58", "two"), &Transition { name: "58", until: WallTime(UNTIL.0 + 9), now: NOW });
    let states: Vec<_> = later.unwrap().set.states.iter().map(|state| (state.name.clone(), state.until)).collect();
    assert_eq!(
        states,
        [("56".to_owned(), Some(UNTIL)), ("57".to_owned(), Some(WallTime(UNTIL.0 + 9))), ("58".to_owned(), None)]
    );
    let after_the_end = Transition { name: "58", until: WallTime(UNTIL.0 + 9), now: UNTIL };
    assert_eq!(plan(after, &inputs("58", "two"), &after_the_end).unwrap().set.states.len(), 2);
}

#[test]
fn what_was_learnt_besides_stays() {
    let mut before = set("56");
    let state = &mut before.states[0];
    state.values.insert(0, vec![5; 32]);
    let learnt =
        EventReference { kind: "systemd:nvpcr-init".to_owned(), digest: vec![6; 32], what: "hardware".to_owned() };
    state.events.get_mut(&9).unwrap().push(learnt.clone());
    let next = &plan(&before, &inputs("57", "two"), &transition("57")).unwrap().set.states[1];
    assert_eq!(next.values[&0], [5; 32]);
    assert_eq!(next.events[&9].last(), Some(&learnt));
}

#[test]
fn without_certainty_there_is_no_plan() {
    let refused = |before: &ReferenceSet, inputs: &Inputs, transition: &Transition<'_>| {
        plan(before, inputs, transition).unwrap_err().to_string()
    };
    let before = set("56");
    assert!(refused(&before, &inputs("56", "one"), &transition("57")).contains("nothing to plan"));
    let past = Transition { name: "57", until: NOW, now: NOW };
    assert!(refused(&before, &inputs("57", "two"), &past).contains("--until"));
    // A stub whose initrd isn't known, where the state has one.
    let newer = uki("257", &kernel(b"57"), "quiet", b"two");
    let newer = Inputs { uki: Some(("new.efi".to_owned(), newer)), ..Inputs::default() };
    assert!(refused(&before, &newer, &transition("57")).contains("PCR 4"));
    assert!(refused(&before, &Inputs { secure_boot: true, ..newer }, &transition("57")).contains("PCR 4"));
    // A value that no event explains.
    let mut whole = before.clone();
    whole.states[0].events.remove(&11);
    whole.states[0].values.insert(11, vec![1; 32]);
    assert!(refused(&whole, &inputs("57", "two"), &transition("57")).contains("PCR 11"));
    // A boot loader before the image.
    let mut loader = before.clone();
    let events = loader.states[0].events.get_mut(&4).unwrap();
    let image = events.iter().find(|event| event.kind.ends_with("APPLICATION")).unwrap().clone();
    events.insert(2, EventReference { digest: vec![9; 32], ..image });
    assert!(refused(&loader, &inputs("57", "two"), &transition("57")).contains("PCR 4"));
    // Two states that last: which one is updated?
    let mut two = before.clone();
    two.states.push(leasehold::verify::references::BootState { name: "other".to_owned(), ..two.states[0].clone() });
    assert!(refused(&two, &inputs("57", "two"), &transition("57")).contains("`other`"));
}

#[test]
fn differences_are_told_in_words() {
    let before = crate::made::set();
    assert!(difference::sets(&before, &before).is_empty());
    let mut after = before.clone();
    after.states[0].until = None;
    after.states.remove(1);
    after.states[0].values.clear();
    after.states[0].secure_boot.as_mut().unwrap().variables.clear();
    let rules = after.runtime.as_mut().unwrap();
    rules.mode = leasehold::verify::runtime::Mode::Enforce;
    rules.files.clear();
    rules.exclusions.clear();
    assert_eq!(
        difference::sets(&before, &after),
        [
            "state `6.1.0-57`: no longer accepted",
            "state `6.1.0-56`: PCR 0: 0202020202020202… → any",
            "state `6.1.0-56`: Secure Boot: db 0404040404040404…: gone",
            "state `6.1.0-56`: Secure Boot: db may be anything from now on",
            "state `6.1.0-56`: accepted without end",
            "runtime: mode: warn → enforce",
            "runtime: file /bin/x: gone",
            "runtime: exclusion /var/lib/containers/ (layers are judged by their own digests): gone",
        ]
    );
}

/// Digests that begin alike can be made by anyone; and a condition that is gone is no stricter one.
#[test]
fn a_difference_isn_t_hidden_by_how_it_is_shown() {
    let text = |tail: u8, secure_boot: &str| {
        let digest = format!("{}{}", "01".repeat(31), hex::encode([tail]));
        let text = format!(
            "schema = 1\nname = \"a\"\nversion = 1\nprofile = \"uefi-uki\"\nbank = \"sha256\"\n\
             [[state]]\nname = \"now\"\n[state.value]\n0 = \"{digest}\"\n{}\n\
             [runtime]\n[runtime.digests]\nsha256 = [\"{digest}\"]\n",
            secure_boot.replace("DIGEST", &digest)
        );
        ReferenceSet::from_toml(&text, "a.toml").unwrap()
    };
    let pinned = "[state.secure_boot]\nauthorities = [\"DIGEST\"]\n[state.secure_boot.variables]\ndb = [\"DIGEST\"]";
    let lines = difference::sets(&text(1, pinned), &text(2, pinned));
    for what in ["PCR 0", "authority", "Secure Boot: db", "runtime: digest"] {
        assert!(lines.iter().any(|line| line.contains(what)), "{what}: {lines:#?}");
    }
    let lines = difference::sets(&text(1, pinned), &text(1, "[state.secure_boot]"));
    assert!(lines.iter().any(|line| line.contains("every authority")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("db may be anything")), "{lines:#?}");

    let exclusions = |count: usize| {
        let mut set = text(1, "");
        set.runtime.as_mut().unwrap().exclusions =
            (0..count).map(|n| Exclusion { path: format!("/decoy/{n}"), reason: "decoy".to_owned() }).collect();
        set
    };
    let lines = difference::sets(&exclusions(0), &exclusions(103));
    assert!(lines.iter().any(|line| line.contains("and 3 more new")), "{lines:#?}");
}
