//! Tokens on their way to the device: those of the next step travel while this one runs.
//!
//! Two slots, each a page-locked pair of arrays and its twin on the device. [`Feed::announce`] fills the slot that is not in use and
//! starts its copy on a stream of its own; [`Feed::deliver`] makes the model's stream wait for that copy and moves the ids to where the
//! captured step reads them. The captured step therefore knows one place only.
//!
//! ```text
//! copies   H2D a ─┐       H2D b ─┐        (b is not overwritten before its last D2D: `moved`)
//! model          D2D a  step ……  D2D b  step ……
//! ```

use anyhow::{Result, ensure};
use cust::event::{Event, EventFlags};
use cust::memory::LockedBuffer;
use cust::stream::{Stream, StreamFlags, StreamWaitEventFlags};

use super::buffers::Exchange;
use crate::arena::Tensor;
use crate::arena::memory::Memory;
use crate::driver::DriverError;

/// Which of the two arrays.
const WHAT: [&str; 2] = ["token", "target"];

struct Slot {
    /// Tokens and targets, page-locked.
    locked: [LockedBuffer<u16>; 2],
    device: [Tensor; 2],
    /// The model's stream has read the slot: its ids have been moved on.
    moved: Option<Event>,
}

/// The way of ids to the device.
pub struct Feed {
    copies: Stream,
    slots: [Slot; 2],
    /// The slot that was announced and not yet delivered, how many ids it has, and the end of its copy.
    announced: Option<(usize, usize, Event)>,
    /// The slot to fill next.
    next: usize,
}

fn event() -> Result<Event> {
    Ok(Event::new(EventFlags::DISABLE_TIMING).map_err(DriverError::from)?)
}

impl Feed {
    /// Slots for as many ids as the exchange buffers hold.
    pub fn new(exchange: &Exchange) -> Result<Self> {
        let ids = exchange.tokens.elements as usize;
        let locked = || LockedBuffer::new(&0u16, ids).map_err(DriverError::from);
        let slot = |device| -> Result<Slot> {
            Ok(Slot {
                locked: [locked()?, locked()?],
                device,
                moved: None,
            })
        };
        let [first, second] = exchange.incoming;
        Ok(Self {
            copies: Stream::new(StreamFlags::NON_BLOCKING, None).map_err(DriverError::from)?,
            slots: [slot(first)?, slot(second)?],
            announced: None,
            next: 0,
        })
    }

    /// Starts the copy of ids that a later [`Feed::deliver`] will ask for. What was announced before and never asked for is forgotten.
    ///
    /// # Errors
    /// Ids that are not below `vocab`; the driver's.
    pub fn announce(&mut self, memory: &Memory, ids: [&[u16]; 2], vocab: usize) -> Result<()> {
        ensure!(ids[0].len() == ids[1].len(), "as many targets as tokens");
        for (what, ids) in WHAT.iter().zip(ids) {
            if let Some(id) = ids.iter().find(|&&id| usize::from(id) >= vocab) {
                anyhow::bail!("{what} {id} is not below vocab_size = {vocab}");
            }
        }
        // The page-locked arrays are read by copies that were started earlier.
        self.copies.synchronize().map_err(DriverError::from)?;
        let index = self.next;
        let slot = &mut self.slots[index];
        if let Some(moved) = slot.moved.take() {
            self.copies
                .wait_event(moved, StreamWaitEventFlags::DEFAULT)
                .map_err(DriverError::from)?;
        }
        for ((locked, place), ids) in slot.locked.iter_mut().zip(slot.device).zip(ids) {
            let count = ids.len();
            locked[..count].copy_from_slice(ids);
            memory.send(place.slice(0, count as u64), &locked[..count], &self.copies)?;
        }
        let arrived = event()?;
        arrived.record(&self.copies).map_err(DriverError::from)?;
        self.announced = Some((index, ids[0].len(), arrived));
        self.next = 1 - index;
        Ok(())
    }

    /// Puts tokens and targets where the model reads them, in order with the work of `stream`. Ids that were announced are there already.
    pub fn deliver(
        &mut self,
        memory: &Memory,
        exchange: &Exchange,
        ids: [&[u16]; 2],
        vocab: usize,
        stream: &Stream,
    ) -> Result<()> {
        if !self.holds(ids) {
            self.announce(memory, ids, vocab)?;
        }
        let Some((index, count, arrived)) = self.announced.take() else {
            unreachable!("announced above");
        };
        stream
            .wait_event(arrived, StreamWaitEventFlags::DEFAULT)
            .map_err(DriverError::from)?;
        let slot = &mut self.slots[index];
        for (place, from) in [exchange.tokens, exchange.targets]
            .into_iter()
            .zip(slot.device)
        {
            let count = count as u64;
            memory.copy(place.slice(0, count), from.slice(0, count), stream)?;
        }
        let moved = event()?;
        moved.record(stream).map_err(DriverError::from)?;
        slot.moved = Some(moved);
        Ok(())
    }

    /// Whether exactly these ids have been announced.
    fn holds(&self, ids: [&[u16]; 2]) -> bool {
        self.announced.as_ref().is_some_and(|&(index, count, _)| {
            let locked = &self.slots[index].locked;
            ids[0].len() == count
                && locked
                    .iter()
                    .zip(ids)
                    .all(|(have, ids)| have[..count] == *ids)
        })
    }
}
