//! `leasehold-server approval|exception|review|debt`.

use clap::Subcommand;

use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::admin::governance::{StatedException, StatedRequest};

/// Commands about approvals.
#[derive(Clone, Debug, Subcommand)]
pub enum ApprovalCommand {
    /// Asks that a workload may have what needs an approval, for a time.
    ///
    /// Policies say what needs one: `when { context has approved_until && context.approved_until > context.now }`.
    Request {
        /// The workload's SPIFFE ID.
        #[arg(long, value_name = "SPIFFE-ID")]
        workload: String,
        /// For one destination; without it for any.
        #[arg(long, default_value = "")]
        destination: String,
        /// Why it is needed.
        #[arg(long)]
        reason: String,
        /// For how long once it is approved, e.g. 30m or 4h.
        #[arg(long = "for", value_name = "DURATION")]
        time: String,
    },
    /// Approves a request.
    ///
    /// Give it over the network (--server, --svid), so that your certificate shows who you are: neither who
    /// asked, nor of the owner of the workload. At the server's local socket only --break-glass works, and is
    /// recorded as that.
    Grant {
        /// The request.
        id: String,
        /// Approves without an identity, in an emergency; needs --reason.
        #[arg(long, requires = "reason")]
        break_glass: bool,
        /// Your words on it.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Turns a request down, or ends an approval before its time.
    Deny {
        /// The request or approval.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Lists requests and approvals, the newest first.
    List,
}

/// Commands about exceptions.
#[derive(Clone, Debug, Subcommand)]
pub enum ExceptionCommand {
    /// Lets a workload off a rule, for a time.
    ///
    /// It ends by itself. Until it is closed, the workload is known to stand on it: once it has ended, nothing
    /// is issued to the workload until the exception is closed or another one granted.
    Add {
        /// The workload's SPIFFE ID.
        #[arg(long, value_name = "SPIFFE-ID")]
        workload: String,
        /// Who answers for the exception.
        #[arg(long)]
        owner: String,
        /// Why it is needed.
        #[arg(long)]
        reason: String,
        /// Where it is worked off.
        #[arg(long)]
        ticket: String,
        /// For how long, e.g. 14d; at most what `governance.exception_days` says.
        #[arg(long, value_name = "DURATION")]
        expires: String,
    },
    /// Lists the exceptions, the newest first.
    List,
    /// Closes an exception: the workload keeps the rule from now on.
    Close {
        /// The exception.
        id: String,
        /// What was done.
        #[arg(long)]
        reason: String,
    },
}

/// Commands about reviews.
#[derive(Clone, Debug, Subcommand)]
pub enum ReviewCommand {
    /// Lists what somebody should look at, and why: unused identities, long lifetimes, missing owners.
    ///
    /// Exit code 0 if there is nothing, 3 otherwise.
    Due,
    /// Notes that you looked at a workload, and that it is as it should be.
    Sign {
        /// Its SPIFFE ID.
        #[arg(long, value_name = "SPIFFE-ID")]
        workload: String,
        /// Your words on it.
        #[arg(long, default_value = "")]
        note: String,
    },
}

/// The admin command of a command line.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] for a duration that is none.
pub fn approval(command: ApprovalCommand) -> Result<Command, Refusal> {
    Ok(match command {
        ApprovalCommand::Request { workload, destination, reason, time } => {
            let seconds = seconds("--for", &time)?;
            Command::ApprovalRequest(StatedRequest { workload, destination, reason, seconds })
        }
        ApprovalCommand::Grant { id, break_glass, reason } => Command::ApprovalGrant { id, break_glass, reason },
        ApprovalCommand::Deny { id, reason } => Command::ApprovalDeny { id, reason },
        ApprovalCommand::List => Command::ApprovalList,
    })
}

/// The admin command of a command line.
///
/// # Errors
/// As [`approval`].
pub fn exception(command: ExceptionCommand) -> Result<Command, Refusal> {
    Ok(match command {
        ExceptionCommand::Add { workload, owner, reason, ticket, expires } => {
            let seconds = seconds("--expires", &expires)?;
            Command::ExceptionAdd(StatedException { workload, owner, reason, ticket, seconds })
        }
        ExceptionCommand::List => Command::ExceptionList,
        ExceptionCommand::Close { id, reason } => Command::ExceptionClose { id, reason },
    })
}

/// The admin command of a command line.
pub fn review(command: ReviewCommand) -> Command {
    match command {
        ReviewCommand::Due => Command::ReviewDue,
        ReviewCommand::Sign { workload, note } => Command::ReviewSign { workload, note },
    }
}

/// A number with one of s, m, h, d.
fn seconds(option: &str, text: &str) -> Result<u64, Refusal> {
    let number = |digits: &str, unit: u64| digits.parse::<u64>().ok()?.checked_mul(unit);
    let found = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)]
        .into_iter()
        .find_map(|(letter, unit)| number(text.strip_suffix(letter)?, unit));
    found.filter(|seconds| *seconds > 0).ok_or_else(|| {
        Refusal::new(codes::ADMIN_INVALID, format!("`{}`", text.escape_debug()))
            .at(option.to_owned())
            .expected("a number and s, m, h or d, e.g. 14d")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, expected) in [("30s", 30), ("15m", 900), ("4h", 14_400), ("14d", 1_209_600)] {
            assert_eq!(seconds("--for", text).unwrap(), expected);
        }
        for wrong in ["", "4", "h", "4 h", "-4h", "4w", "0d", "18446744073709551615d", "１d", "4hh"] {
            assert_eq!(seconds("--for", wrong).unwrap_err().code, codes::ADMIN_INVALID, "{wrong}");
        }
    }
}
