//! Roles: which operator may give which command. The rules are Cedar; any error in them denies.

use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};

use crate::codes::{self, Refusal};

/// The roles that an operator can be given.
pub const ROLES: [&str; 4] = ["viewer", "approver", "operator", "admin"];

/// The role of whoever is at the local socket.
pub const LOCAL: &str = "local";

const SCHEMA: &str = include_str!("roles.cedarschema");
const POLICIES: &str = include_str!("roles.cedar");

/// What a command does, as far as roles are concerned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Action {
    /// Changes nothing.
    Read,
    /// Daily work.
    Operate,
    /// Says yes to what somebody else asked for.
    Approve,
    /// What the rest stands on.
    Administer,
}

impl Action {
    /// As in the rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Approve => "approve",
            Self::Administer => "administer",
        }
    }
}

/// Who gives a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Actor {
    /// The SPIFFE ID of its certificate, or `local:uid:N`.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Whether it is at the local socket.
    pub local: bool,
}

impl Actor {
    /// Whoever is at the local socket, which lets in its owner and root only.
    pub fn local(uid: u32) -> Self {
        Self { name: format!("local:uid:{uid}"), role: LOCAL.to_owned(), local: true }
    }
}

/// The rules, ready to be asked.
#[derive(Clone, Debug)]
pub struct Roles {
    schema: Schema,
    policies: PolicySet,
}

impl Roles {
    /// The rules that are shipped.
    ///
    /// # Errors
    /// Never: a test reads them. The parsers have error types.
    pub fn shipped() -> Result<Self, Refusal> {
        let failed = |what: String| Refusal::new(codes::CONFIG_INVALID, what).at("roles");
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|e| failed(e.to_string()))?;
        let policies = PolicySet::from_str(POLICIES).map_err(|e| failed(e.to_string()))?;
        let found = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        match found.validation_errors().next() {
            None => Ok(Self { schema, policies }),
            Some(error) => Err(failed(error.to_string())),
        }
    }

    /// Whether `actor` may give the command of this name.
    ///
    /// # Errors
    /// [`codes::ADMIN_ROLE`].
    pub fn allow(&self, actor: &Actor, action: Action, command: &str) -> Result<(), Refusal> {
        let refuse = |what: String| {
            Refusal::new(codes::ADMIN_ROLE, what).at(actor.name.clone()).expected(match action {
                Action::Read => "any role (`leasehold-server operator add`)",
                Action::Operate => "the role operator or admin",
                Action::Approve => "the role approver or admin",
                Action::Administer => "the role admin, or the server's local socket",
            })
        };
        let failed = |what: String| refuse(format!("the rules for roles can't be asked: {what}"));
        let (request, entities) = self.question(actor, action, command).map_err(failed)?;
        let answer = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        // A rule that fails is skipped, and it may have been one that forbids.
        if let Some(error) = answer.diagnostics().errors().next() {
            return Err(failed(error.to_string()));
        }
        match answer.decision() {
            cedar_policy::Decision::Allow => Ok(()),
            cedar_policy::Decision::Deny => Err(refuse(format!("the role `{}` doesn't allow `{command}`", actor.role))),
        }
    }

    fn question(&self, actor: &Actor, action: Action, command: &str) -> Result<(Request, Entities), String> {
        let said = |e: &dyn std::fmt::Display| e.to_string();
        let role = uid("Role", &actor.role)?;
        let principal = uid("Operator", &actor.name)?;
        let server = uid("Server", "this")?;
        let action = uid("Action", action.as_str())?;
        let context = Context::from_pairs([
            ("command".to_owned(), RestrictedExpression::new_string(command.to_owned())),
            ("local".to_owned(), RestrictedExpression::new_bool(actor.local)),
        ])
        .map_err(|e| said(&e))?;
        let entities = [
            Entity::new_no_attrs(principal.clone(), [role.clone()].into()),
            Entity::new_no_attrs(role, Default::default()),
            Entity::new_no_attrs(server.clone(), Default::default()),
        ];
        let entities = Entities::from_entities(entities, Some(&self.schema)).map_err(|e| said(&e))?;
        let request = Request::new(principal, action, server, context, Some(&self.schema)).map_err(|e| said(&e))?;
        Ok((request, entities))
    }
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, String> {
    let kind = EntityTypeName::from_str(kind).map_err(|e| e.to_string())?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_what_it_is_for() {
        use Action::{Administer, Approve, Operate, Read};
        let roles = Roles::shipped().unwrap();
        let may = |role: &str, local: bool| {
            let actor = Actor { name: "spiffe://example.org/ops/a\"b".to_owned(), role: role.to_owned(), local };
            [Read, Operate, Approve, Administer].map(|action| roles.allow(&actor, action, "x").is_ok())
        };
        assert_eq!(may("viewer", false), [true, false, false, false]);
        assert_eq!(may("approver", false), [true, false, true, false]);
        assert_eq!(may("operator", false), [true, true, false, false]);
        assert_eq!(may("admin", false), [true, true, true, true]);
        assert_eq!(may("local", true), [true, true, true, true]);
        // Nobody gets the local role over the network, and a role nobody knows is none.
        assert_eq!(may("local", false), [false; 4]);
        assert_eq!(may("", false), [false; 4]);
        let refusal = roles.allow(&Actor::local(7), Read, "x");
        assert!(refusal.is_ok());
        let actor = Actor { name: "n".to_owned(), role: "viewer".to_owned(), local: false };
        let refusal = roles.allow(&actor, Operate, "node_approve").unwrap_err();
        assert_eq!(refusal.code, codes::ADMIN_ROLE);
        assert!(refusal.to_string().contains("node_approve"), "{refusal}");
    }
}
