//! Reading PCRs so that a reading says which values the TPM held, and in which of its lives.

use std::collections::BTreeMap;
use std::time::Duration;

use p256::ecdsa::VerifyingKey;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::AuthSession;

use super::connection::{Connection, Sessions};
use super::session;
use super::words::Fault;
use super::{Bank, PcrReading, PcrSelection, PcrValues, ResetCounts, TpmError};
use crate::clock::BootInstant;

/// How often PCRs are read again because one was extended in between.
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

    /// The reset counts of the last anchor.
    pub const fn counts(&self) -> ResetCounts {
        self.anchor.counts
    }

    /// Reads in the standing session. When nothing was extended since the last reading, the first
    /// part is all that is read: an equal counter proves that the rest is as it was.
    pub fn read(&mut self, connection: &mut Connection, selection: PcrSelection) -> Result<PcrReading, Fault> {
        let started_at = BootInstant::now();
        let numbers: Vec<u8> = selection.pcrs().collect();
        let parts: Vec<&[u8]> = numbers.chunks(PART).collect();
        for _ in 0..ROUNDS {
            let Some((update_counter, values)) = self.read_parts(connection, selection, &parts)? else { continue };
            self.anchor_again(connection, update_counter)?;
            let values = values.into_iter().map(|((_, pcr), value)| (pcr, value)).collect();
            let values = PcrValues::new(selection, values).map_err(Fault::lost)?;
            let finished_at = BootInstant::now();
            return Ok(PcrReading { started_at, finished_at, values, update_counter, counts: self.anchor.counts });
        }
        Err(TpmError::Unavailable("PCRs are extended faster than they can be read".to_owned()).into())
    }

    /// One value for each PCR, all read at one update counter; none if the counter moved between.
    fn read_parts(
        &mut self,
        connection: &mut Connection,
        selection: PcrSelection,
        parts: &[&[u8]],
    ) -> Result<Option<(u32, Values)>, Fault> {
        let mut at = None;
        let mut values = Values::new();
        let mut known = None;
        for (number, part) in parts.iter().enumerate() {
            let key = |pcr: &u8| (selection.bank(), *pcr);
            if number > 0
                && let Some(known) = &known
            {
                // Only complete parts: a part is one command in any case.
                let of_part: Option<Values> = part
                    .iter()
                    .map(|pcr| Values::get(known, &key(pcr)).map(|value| (key(pcr), value.clone())))
                    .collect();
                if let Some(of_part) = of_part {
                    values.extend(of_part);
                    continue;
                }
            }
            let (update_counter, read) = read_part(connection, self.session, selection.bank(), part)?;
            match at {
                None => {
                    at = Some(update_counter);
                    known = self.still_known(selection, update_counter, &read);
                }
                Some(first) if first != update_counter => return Ok(None),
                Some(_) => {}
            }
            values.extend(read);
        }
        let Some(update_counter) = at else { return Err(Fault::lost("nothing was selected")) };
        if selection.counted() {
            let mut all = known.unwrap_or_default();
            all.extend(values.iter().map(|(key, value)| (*key, value.clone())));
            self.known = Some(Known { update_counter, values: all });
        }
        Ok(Some((update_counter, values)))
    }

    /// What was read at this counter before, unless the part just read contradicts it.
    fn still_known(&self, selection: PcrSelection, update_counter: u32, read: &Values) -> Option<Values> {
        let known =
            self.known.as_ref().filter(|known| selection.counted() && known.update_counter == update_counter)?;
        read.iter()
            .all(|(key, value)| known.values.get(key).is_none_or(|old| old == value))
            .then(|| known.values.clone())
    }

    /// Asks for the reset counts again if the session alone doesn't prove that they still hold.
    fn anchor_again(&mut self, connection: &mut Connection, update_counter: u32) -> Result<(), Fault> {
        if update_counter == self.anchor.update_counter && !self.anchor.suspended_since() {
            return Ok(());
        }
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
