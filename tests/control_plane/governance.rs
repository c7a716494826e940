//! Approvals, exceptions, reviews and debt: by whom, for how long, and that each ends by itself.

use serde_json::Value;

use crate::bench::Server;
use crate::operators::{operator, run, said};

const DAY: u64 = 86_400;

async fn refused(server: &Server, arguments: &[&str], what: &str) {
    let output = server.run(arguments).await;
    assert!(!output.status.success(), "{arguments:?} was carried out");
    assert!(said(&output).contains(what), "{arguments:?}: {}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exception_has_an_owner_a_reason_a_ticket_and_an_end() {
    let server = Server::start_with("[governance]\nexception_days = 30").await;
    let node = server.leased().await;
    let web = server.register("web", &node.id()).await;
    let full = ["exception", "add", "--workload", &web, "--owner", "team", "--reason", "old client", "--ticket", "T-1"];
    for without in [2, 4, 6, 8] {
        let arguments: Vec<&str> =
            full.iter().enumerate().filter(|(at, _)| *at != without && *at != without + 1).map(|(_, a)| *a).collect();
        let output = server.run(&[&arguments[..], &["--expires", "7d"]].concat()).await;
        assert_eq!(output.status.code(), Some(2), "without {}", full[without]);
    }
    assert_eq!(server.run(&full).await.status.code(), Some(2), "without an end");
    refused(&server, &[&full[..], &["--expires", "31d"]].concat(), "at most 30 days").await;
    refused(&server, &[&full[..], &["--expires", "soon"]].concat(), "a number and s, m, h or d").await;
    let ghost = ["exception", "add", "--workload", "spiffe://example.org/ghost", "--owner", "team"];
    let rest = ["--reason", "r", "--ticket", "t", "--expires", "1d"];
    refused(&server, &[&ghost[..], &rest[..]].concat(), "admin.unknown").await;

    let added = server.admin(&[&full[..], &["--expires", "7d"]].concat()).await;
    assert_eq!(added["exception"]["state"], "live");
    let debt = server.admin(&["debt"]).await;
    assert_eq!((&debt["count"], &debt["live"]), (&1.into(), &1.into()));
    // A week later it has ended, and nobody did anything: it is debt still until it is closed.
    server.pass(7 * DAY);
    let listed = server.admin(&["exception", "list"]).await;
    assert_eq!(listed["exceptions"][0]["state"], "ended");
    let debt = server.admin(&["debt"]).await;
    assert_eq!((&debt["count"], &debt["live"], &debt["oldest_days"]), (&1.into(), &0.into(), &7.into()));
    let trend: Vec<u64> = debt["trend"].as_array().unwrap().iter().map(|week| week["open"].as_u64().unwrap()).collect();
    assert_eq!(trend, [0, 0, 0, 0, 0, 0, 1, 1]);
    let id = added["exception"]["id"].as_str().unwrap();
    server.admin(&["exception", "close", id, "--reason", "client replaced"]).await;
    refused(&server, &["exception", "close", id, "--reason", "again"], "admin.unknown").await;
    let debt = server.admin(&["debt"]).await;
    assert_eq!(debt["count"], 0);
    let recorded = server.recorded().await;
    for what in ["exception.added", "exception.closed"] {
        assert_eq!(recorded.iter().filter(|recorded| *recorded == what).count(), 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_somebody_elses_and_shows_who() {
    let server = Server::start().await;
    let mut node = server.leased().await;
    let web = server.register("web", &node.id()).await;
    server.admin(&["owner", "add", "security"]).await;
    let asking = operator(&server, &mut node, "asking", Some("operator")).await;
    let kin = operator(&server, &mut node, "kin", Some("approver")).await;
    let other = operator(&server, &mut node, "other", Some("approver")).await;
    let unknown = operator(&server, &mut node, "unknown", Some("approver")).await;
    let belongs = |name: &'static str, owner: &'static str, role: &'static str| {
        let (server, id) = (&server, format!("spiffe://example.org/{name}"));
        async move { server.admin(&["operator", "add", &id, "--role", role, "--owner", owner]).await }
    };
    belongs("kin", "team", "approver").await;
    belongs("other", "security", "approver").await;
    belongs("asking", "security", "admin").await;

    let request = ["approval", "request", "--workload", &web, "--reason", "release day", "--for", "1h", "--json"];
    refused(&server, &["approval", "request", "--workload", &web, "--reason", "r", "--for", "25h"], "24 hours").await;
    let output = run(&server, asking.path(), &request).await;
    let asked: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert_eq!(
        (&asked["approval"]["state"], &asked["approval"]["requested_by"]),
        (&"requested".into(), &"spiffe://example.org/asking".into())
    );
    let id = asked["approval"]["id"].as_str().unwrap().to_owned();
    let grant = ["approval", "grant", &id];
    for (svid, why) in [(&asking, "who asked"), (&kin, "answers for the workload"), (&unknown, "nobody said")] {
        let output = run(&server, svid.path(), &grant).await;
        assert!(said(&output).contains("approval.own") && said(&output).contains(why), "{why}: {}", said(&output));
    }
    // The local socket is nobody in particular.
    refused(&server, &grant, "approval.identity").await;
    let far = run(&server, other.path(), &["approval", "grant", &id, "--break-glass", "--reason", "x"]).await;
    assert!(said(&far).contains("local socket only"), "{}", said(&far));
    let output = run(&server, other.path(), &grant).await;
    assert!(output.status.success(), "{}", said(&output));
    let state = || async { server.admin(&["approval", "list"]).await["approvals"][0].clone() };
    let granted = state().await;
    assert_eq!((&granted["state"], &granted["decided_by"]), (&"live".into(), &"spiffe://example.org/other".into()));
    let again = run(&server, other.path(), &grant).await;
    assert!(said(&again).contains("approved already"), "{}", said(&again));
    server.pass(3_600);
    assert_eq!(state().await["state"], "ended");

    // Breaking the glass works here, and is called that.
    let asked = server.admin(&request[..request.len() - 1]).await;
    let id = asked["approval"]["id"].as_str().unwrap().to_owned();
    assert_eq!(server.run(&["approval", "grant", &id, "--break-glass"]).await.status.code(), Some(2), "no reason");
    let broken = server.admin(&["approval", "grant", &id, "--break-glass", "--reason", "the site is down"]).await;
    assert_eq!((&broken["approval"]["break_glass"], &broken["approval"]["state"]), (&true.into(), &"live".into()));
    server.admin(&["approval", "deny", &id, "--reason", "over"]).await;
    assert_eq!(state().await["state"], "ended");
    let recorded = server.recorded().await;
    for what in ["approval.granted", "approval.break_glass", "approval.ended"] {
        assert_eq!(recorded.iter().filter(|recorded| *recorded == what).count(), 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_looks_at_is_due_and_then_suspended() {
    let server = Server::start_with("[governance]\nreview_days = 90\nsuspend_overdue_days = 10").await;
    let node = server.leased().await;
    let web = server.register("web", &node.id()).await;
    let why = || async {
        let due = server.admin_of(&["review", "due"], 3).await;
        due["due"][0]["why"].as_array().unwrap().iter().map(|why| why.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(why().await.iter().any(|why| why.contains("tier")));
    server.admin(&["review", "sign", "--workload", &web, "--note", "fine"]).await;
    let due = server.admin(&["review", "due"]).await;
    assert_eq!(due["due"].as_array().unwrap().len(), 0, "{due}");
    server.pass(91 * DAY);
    assert!(why().await.iter().any(|why| why.contains("nobody looked at it since")));
    assert!(why().await.iter().any(|why| why.contains("nothing was ever issued")));
    refused(&server, &["review", "sign", "--workload", "spiffe://example.org/ghost"], "admin.unknown").await;
    let recorded = server.recorded().await;
    assert_eq!(recorded.iter().filter(|what| *what == "review.signed").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_asks_this_server_and_says_what_it_cannot_show() {
    let server = Server::start().await;
    let node = server.leased().await;
    let web = server.register("web", &node.id()).await;
    node.credential(&web).await.unwrap();
    for framework in ["nhi10", "agentic", "maestro", "ai-rmf", "csf2"] {
        let output = server.run(&["report", "--framework", framework, "--json"]).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let controls = report["controls"].as_array().unwrap();
        assert!(controls.len() >= 6, "{framework}");
        for control in controls {
            assert!(!control["citation"].as_str().unwrap().is_empty());
            let shown = !control["evidence"].as_array().unwrap().is_empty();
            assert_eq!(control["standing"] == "out of scope", !shown, "{control}");
        }
        let attention = controls.iter().filter(|control| control["standing"] == "attention").count();
        assert_eq!(report["attention"], attention);
        assert_eq!(output.status.code(), Some(if attention > 0 { 3 } else { 0 }), "{framework}");
    }
    // What a control shows follows from what is so: a shared selector set, an exception that was forgotten.
    let standing = |id: &'static str| {
        let server = &server;
        async move {
            let output = server.run(&["report", "--framework", "nhi10", "--json"]).await;
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let row = report["controls"].as_array().unwrap().iter().find(|row| row["id"] == id).unwrap().clone();
            row["standing"].as_str().unwrap().to_owned()
        }
    };
    assert_eq!(standing("NHI7:2025").await, "shown");
    let add = ["exception", "add", "--workload", &web, "--owner", "team", "--reason", "r", "--ticket", "t"];
    server.admin(&[&add[..], &["--expires", "1d"]].concat()).await;
    assert_eq!(standing("NHI7:2025").await, "shown");
    server.pass(2 * DAY);
    assert_eq!(standing("NHI7:2025").await, "attention");
    refused(&server, &["report", "--framework", "iso"], "nhi10, agentic, maestro, ai-rmf, csf2").await;
}
