//! The devices that the engine computes on: opened once when it starts, each with a budget of bytes.

use candle_core::Device;
use darkroom_models::device::{self, DeviceError, DeviceName};

use super::EngineOptions;

/// Bytes of a card that are left to others, and to what no budget counts: libraries' workspaces, the driver's own.
const CARD_RESERVE: u64 = 768 << 20;

/// A device that the engine computes on.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Its name (`cpu`, `cuda:0`): never `auto`.
    pub name: DeviceName,
    /// What tensors are made on.
    pub device: Device,
    /// Bytes for weights and activations.
    pub budget: u64,
    /// What the card calls itself.
    pub card: Option<String>,
}

impl OpenDevice {
    /// Bytes of its memory that are free, and in all; `None` for the CPU.
    pub fn memory(&self) -> Option<(u64, u64)> {
        device::memory(&self.device)
    }
}

/// Opens the devices that `options` name.
pub(super) fn open(options: &EngineOptions) -> Result<Vec<OpenDevice>, DeviceError> {
    options.devices.iter().map(|name| open_one(*name, options)).collect()
}

fn open_one(name: DeviceName, options: &EngineOptions) -> Result<OpenDevice, DeviceError> {
    let (device, unused) = device::open(name)?;
    if let Some(reason) = unused {
        tracing::warn!(%reason, "computing on the CPU; `darkroom doctor` tells more");
    }
    let Some((free, total)) = device::memory(&device) else {
        return Ok(OpenDevice { name: DeviceName::Cpu, device, budget: options.memory_budget, card: None });
    };
    let number = if let DeviceName::Cuda(number) = name { number } else { 0 };
    let card = device::cards()?.into_iter().find(|card| card.number == number).map(|card| card.name);
    let budget = card_budget(options.vram_limit, free);
    tracing::info!(
        device = %DeviceName::Cuda(number),
        card,
        budget_mib = budget >> 20,
        free_mib = free >> 20,
        total_mib = total >> 20,
        "opened"
    );
    Ok(OpenDevice { name: DeviceName::Cuda(number), device, budget, card })
}

/// The limit, or all that is free; something is left in either case.
fn card_budget(limit: u64, free: u64) -> u64 {
    let room = free.saturating_sub(CARD_RESERVE);
    match limit {
        0 => room,
        limit => limit.saturating_sub(CARD_RESERVE.min(limit / 4)).min(room),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_card_is_never_promised_away_wholly() {
        assert_eq!(card_budget(0, 80 * GIB), 80 * GIB - CARD_RESERVE);
        assert_eq!(card_budget(8 * GIB, 80 * GIB), 8 * GIB - CARD_RESERVE);
        assert_eq!(card_budget(8 * GIB, 6 * GIB), 6 * GIB - CARD_RESERVE);
        assert_eq!(card_budget(GIB, 80 * GIB), GIB - GIB / 4);
        assert_eq!(card_budget(0, GIB / 2), 0);
    }
}
