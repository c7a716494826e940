//! The table of routes: what each needs, how much it reads, and what answers it.

use axum::http::Method;

use crate::control_plane::admin;
use crate::control_plane::published::Topic;
use crate::control_plane::quota::Account;
use crate::protocol::{BODY_LIMIT, records};

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// The largest body it reads, in bytes.
    pub limit: usize,
    pub(super) call: Call,
}

/// Every route. One that isn't here doesn't exist.
pub const ROUTES: &[Route] = &[
    Route { method: Method::POST, path: "/v1/enrol", access: Access::Anyone, limit: 64 << 10, call: Call::Enrol },
    Route {
        method: Method::POST,
        path: "/v1/enrol/answer",
        access: Access::Anyone,
        limit: 256 << 10,
        call: Call::Answer,
    },
    Route { method: Method::GET, path: "/v1/nonce", access: Access::Node, limit: 0, call: Call::Nonce },
    Route { method: Method::POST, path: "/v1/logs", access: Access::Node, limit: BODY_LIMIT, call: Call::Logs },
    Route { method: Method::GET, path: "/v1/references", access: Access::Node, limit: 0, call: Call::References },
    Route { method: Method::POST, path: "/v1/attest", access: Access::Node, limit: BODY_LIMIT, call: Call::Attest },
    Route {
        method: Method::POST,
        path: "/v1/credentials",
        access: Access::Node,
        limit: 1 << 20,
        call: Call::Credentials,
    },
    Route { method: Method::POST, path: "/v1/grants", access: Access::Node, limit: 64 << 10, call: Call::Grants },
    Route { method: Method::POST, path: "/v1/tasks/end", access: Access::Node, limit: 1 << 20, call: Call::TasksEnd },
    Route {
        method: Method::POST,
        path: "/v1/records",
        access: Access::Node,
        limit: records::BODY_LIMIT,
        call: Call::Records,
    },
    Route { method: Method::GET, path: "/v1/events", access: Access::Node, limit: 0, call: Call::Events },
    Route {
        method: Method::POST,
        path: "/v1/withdrawals",
        access: Access::Node,
        limit: 16 << 10,
        call: Call::Withdrawals,
    },
    Route { method: Method::GET, path: "/v1/crl", access: Access::Anyone, limit: 0, call: Call::Published(Topic::Crl) },
    Route {
        method: Method::GET,
        path: "/v1/crl/{key}",
        access: Access::Anyone,
        limit: 0,
        call: Call::Published(Topic::Crl),
    },
    Route {
        method: Method::GET,
        path: "/v1/denied",
        access: Access::Anyone,
        limit: 0,
        call: Call::Published(Topic::Denied),
    },
    Route {
        method: Method::GET,
        path: "/v1/bundle",
        access: Access::Anyone,
        limit: 0,
        call: Call::Published(Topic::Bundle),
    },
    Route { method: Method::POST, path: admin::PATH, access: Access::Operator, limit: admin::LIMIT, call: Call::Admin },
];

/// Whom a route is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Whoever connects: there is no certificate yet, or none is needed.
    Anyone,
    /// Admitted nodes.
    Node,
    /// Operators; their role says which commands.
    Operator,
}

/// What answers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Enrol,
    Answer,
    Nonce,
    Logs,
    References,
    Attest,
    Credentials,
    Grants,
    TasksEnd,
    Records,
    Events,
    Admin,
    /// For relying parties.
    Published(Topic),
    /// The one call that a revoked node is served: it says that it applied that.
    Withdrawals,
}

impl Call {
    /// What a node's call is counted under.
    pub(super) const fn account(self) -> Account {
        match self {
            Self::Credentials => Account::Identities,
            Self::Grants => Account::Grants,
            Self::Records | Self::TasksEnd => Account::Records,
            _ => Account::Membership,
        }
    }
}
