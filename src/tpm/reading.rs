//! Reading PCRs so that a reading says which values the TPM held, and in which of its lives.

use std::collections::BTreeMap;
use std::time::Duration;

use p256::ecdsa::VerifyingKey;
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::session_handles::AuthSession;

use super::connection::{Connection, Sessions};
use super::session;
use super::words::Fault;
use super::{Bank, IMA_PCR, PcrReading, PcrSelection, PcrValues, ResetCounts, TpmError};
use crate::clock::BootInstant;

/// How often PCRs are read again because a selected one was extended in between.
const ROUNDS: usize = 16;

/// PCR_Read returns at most this many values (Part 2, 10.9.6: TPML_DIGEST).
const PART: usize = 8;

/// The standing session, what it is anchored to, and what was read in it.
pub(super) struct Reader {
    session: AuthSession,
    ak: KeyHandle,
    ak_key: VerifyingKey,
    anchor: Anchor,
    known: Option<Known>,
}

/// What the attestation key last vouched for within the standing session.
struct Anchor {
    counts: ResetCounts,
    /// The update counter then. Behind a resource manager, which saves sessions, the session also
    /// survives a TPM Restart or Resume. Restart clears PCRs: to restore them takes extensions,
    /// which move the counter, and so a moved counter calls for another anchor.
    update_counter: u32,
    /// How long this machine had been suspended in all by then: Resume leaves the counter alone.
    suspended: Duration,
}

/// Values read in the standing session at one update counter.
struct Known {
    update_counter: u32,
    values: Values,
}

/// Values of one moment.
struct Moment {
    /// The counter at that moment.
    update_counter: u32,
    /// The counter of the last answer.
    last_counter: u32,
    values: Values,
}

type Values = BTreeMap<(Bank, u8), Vec<u8>>;

impl Reader {
    /// Anchors a fresh session, salted to the pinned EK.
    pub fn new(
        connection: &mut Connection,
        session: AuthSession,
        ak: KeyHandle,
        ak_key: VerifyingKey,
    ) -> Result<Self, Fault> {
        let suspended = suspended();
        // An empty selection: only the counter is wanted.
        let (update_counter, _) = read_part(connection, session, Bank::Sha256, &[])?;
        let counts = session::anchor(connection, ak, &ak_key)?;
        Ok(Self { session, ak, ak_key, anchor: Anchor { counts, update_counter, suspended }, known: None })
    }

    /// The standing session's handle.
    pub fn handle(&self) -> ObjectHandle {
        SessionHandle::from(self.session).into()
    }

    /// The reset counts of the last anchor.
    pub const fn counts(&self) -> ResetCounts {
        self.anchor.counts
    }

    /// Reads in the standing session. When nothing was extended since the last reading, the first
    /// part is all that is read: an equal counter proves that the rest is as it was.
    pub fn read(&mut self, connection: &mut Connection, selection: PcrSelection) -> Result<PcrReading, Fault> {
        let started_at = BootInstant::now();
        // PCR 10 in the last part, which is the one that need not hold still: see `moment`.
        let (moving, mut numbers): (Vec<u8>, Vec<u8>) = selection.pcrs().partition(|pcr| *pcr == IMA_PCR);
        numbers.extend(moving);
        // The TPM answers in ascending order, whatever order is asked in.
        numbers.chunks_mut(PART).for_each(<[u8]>::sort_unstable);
        let parts: Vec<&[u8]> = numbers.chunks(PART).collect();
        let Moment { update_counter, last_counter, values } = self.moment(connection, selection, &parts)?;
        let contradicted = selection.counted() && self.contradicted(update_counter, &values);
        if contradicted {
            self.known = None;
        }
        // Other values at the same counter: PCRs were set back without being extended.
        if contradicted || last_counter != self.anchor.update_counter || self.anchor.suspended_since() {
            self.anchor_again(connection, last_counter)?;
        }
        let counts = self.anchor.counts;
        if selection.counted() {
            self.know(update_counter, &values);
        }
        let values = values.into_iter().map(|((_, pcr), value)| (pcr, value)).collect();
        let values = PcrValues::new(selection, values).map_err(Fault::lost)?;
        Ok(PcrReading { started_at, finished_at: BootInstant::now(), values, update_counter, counts })
    }

    /// The values of all parts at one moment.
    ///
    /// Parts read at the same counter are of one moment. If the counter moved, perhaps for a PCR
    /// that isn't selected, all parts but the last are read again: short of a reset, which the
    /// anchor shows, an extended PCR doesn't return to a value it had, so equal values held all the
    /// while, and also when the last part was read. The last part itself is never read twice for this,
    /// so a PCR in it may be extended as often as it likes: PCR 10 is put there, which on a busy
    /// machine moves many times a second and would otherwise starve every reading.
    fn moment(&self, connection: &mut Connection, selection: PcrSelection, parts: &[&[u8]]) -> Result<Moment, Fault> {
        let mut read = |part: &[u8]| read_part(connection, self.session, selection.bank(), part);
        let mut cycle: Vec<(u32, Values)> = Vec::new();
        for round in 0..ROUNDS {
            for part in parts.iter().skip(cycle.len()) {
                let (update_counter, values) = read(part)?;
                if round == 0
                    && cycle.is_empty()
                    && let Some(values) = self.still_known(selection, update_counter, &values)
                {
                    return Ok(Moment { update_counter, last_counter: update_counter, values });
                }
                cycle.push((update_counter, values));
            }
            let Some(update_counter) = cycle.last().map(|(counter, _)| *counter) else { break };
            let mut last_counter = update_counter;
            if cycle.iter().any(|(other, _)| *other != update_counter) {
                let mut again = Vec::new();
                let mut held = true;
                for (part, (_, before)) in parts.iter().zip(&cycle).take(cycle.len() - 1) {
                    let (counter, values) = read(part)?;
                    held = values == *before;
                    last_counter = counter;
                    again.push((counter, values));
                    if !held {
                        break;
                    }
                }
                if !held {
                    // What was read again begins the next cycle.
                    cycle = again;
                    continue;
                }
            }
            let values = cycle.into_iter().flat_map(|(_, values)| values).collect();
            return Ok(Moment { update_counter, last_counter, values });
        }
        Err(TpmError::Unavailable("selected PCRs are extended faster than they can be read".to_owned()).into())
    }

    /// All values of the selection, if they were read at this counter before and the part just
    /// read doesn't contradict that.
    fn still_known(&self, selection: PcrSelection, update_counter: u32, read: &Values) -> Option<Values> {
        let known =
            self.known.as_ref().filter(|known| selection.counted() && known.update_counter == update_counter)?;
        if self.contradicted(update_counter, read) {
            return None;
        }
        let key = |pcr| (selection.bank(), pcr);
        selection
            .pcrs()
            .map(|pcr| {
                let value = read.get(&key(pcr)).or_else(|| known.values.get(&key(pcr)))?;
                Some((key(pcr), value.clone()))
            })
            .collect()
    }

    /// Whether another value was read at this counter before.
    fn contradicted(&self, update_counter: u32, read: &Values) -> bool {
        self.known.as_ref().is_some_and(|known| {
            known.update_counter == update_counter
                && read.iter().any(|(key, value)| known.values.get(key).is_some_and(|before| before != value))
        })
    }

    /// Remembers values of one moment beside others of the same counter.
    fn know(&mut self, update_counter: u32, values: &Values) {
        let mut all = match self.known.take() {
            Some(known) if known.update_counter == update_counter => known.values,
            _ => Values::new(),
        };
        all.extend(values.iter().map(|(key, value)| (*key, value.clone())));
        self.known = Some(Known { update_counter, values: all });
    }

    /// Asks for the reset counts again, where the session alone doesn't prove that they still hold.
    fn anchor_again(&mut self, connection: &mut Connection, update_counter: u32) -> Result<(), Fault> {
        let suspended = suspended();
        let counts = session::anchor(connection, self.ak, &self.ak_key)?;
        if counts != self.anchor.counts {
            return Err(Fault { lost: true, ..TpmError::Reset.into() });
        }
        self.anchor = Anchor { counts, update_counter, suspended };
        Ok(())
    }
}

impl Anchor {
    fn suspended_since(&self) -> bool {
        // The two clocks are read one after the other: below this it may be scheduling.
        suspended().saturating_sub(self.suspended) > Duration::from_millis(50)
    }
}

/// One PCR_Read in the standing session.
fn read_part(
    connection: &mut Connection,
    session: AuthSession,
    bank: Bank,
    pcrs: &[u8],
) -> Result<(u32, Values), Fault> {
    const COMMAND: &str = "TPM2_PCR_Read";
    let asked = session::selection_list(bank, pcrs.iter().copied())?;
    let sessions: Sessions = (Some(session), None, None);
    let (update_counter, answered, digests) =
        connection.call(COMMAND, sessions, |context| context.pcr_read(asked.clone())).map_err(|mut fault| {
            // The session is out of step: a new one is the only cure, and nobody's fault is proven.
            if fault.blames_session() && !fault.lost {
                fault.lost = true;
                fault.error = TpmError::Unavailable(format!("the standing session is out of step: {}", fault.error));
            }
            fault
        })?;
    let slots = |list: &tss_esapi::structures::PcrSelectionList| {
        list.get_selections().first().map(|of| (of.hashing_algorithm(), of.selected())).unzip()
    };
    if pcrs.is_empty() {
        return Ok((update_counter, Values::new()));
    }
    if slots(&answered) != slots(&asked) || digests.len() != pcrs.len() {
        return Err(Fault::refused(
            COMMAND,
            format!("not all of PCR {pcrs:?} have a value in the {bank} bank: is it active?"),
        ));
    }
    let values =
        pcrs.iter().zip(digests.value()).map(|(pcr, digest)| ((bank, *pcr), digest.value().to_vec())).collect();
    Ok((update_counter, values))
}

/// How long this machine has been suspended since it booted.
fn suspended() -> Duration {
    let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = |seconds: i64, nanos: i64| {
        u64::try_from(seconds)
            .unwrap_or(0)
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(nanos).unwrap_or(0))
    };
    BootInstant::now().since(BootInstant::from_nanos(nanos(monotonic.tv_sec, monotonic.tv_nsec)))
}
