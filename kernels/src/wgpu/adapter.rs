//! What devices there are, and what each can do.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::spec::{Backend, Caps, KernelError, WgpuCaps};

/// How much of a device the kernels may use: `OCELLI_WGPU`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The adapter's limits and every feature that a kernel knows.
    #[default]
    Full,
    /// The default limits of WebGPU and no feature: what every browser and every adapter has.
    Baseline,
}

impl Profile {
    /// What `OCELLI_WGPU` asks for; errors name the values that it may have.
    pub fn from_env() -> Result<Self, KernelError> {
        match std::env::var("OCELLI_WGPU") {
            Ok(text) if !text.is_empty() => text.parse().map_err(KernelError::Device),
            _ => Ok(Self::Full),
        }
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "baseline" => Ok(Self::Baseline),
            _ => Err(format!("OCELLI_WGPU: expected full or baseline, found `{text}`")),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Baseline => "baseline",
        })
    }
}

/// Limits and features of an adapter, as `ocelli devices` shows them.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterDetails {
    /// API that drives it: Vulkan, Metal, Dx12.
    pub api: String,
    /// DiscreteGpu, IntegratedGpu, VirtualGpu, Cpu or Other.
    pub kind: String,
    /// The driver and its version.
    pub driver: String,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Largest part of a buffer that a kernel sees at once, in bytes.
    pub max_binding: u64,
    /// Memory that the invocations of a workgroup share, in bytes.
    pub workgroup_memory: u32,
    /// Invocations of a workgroup.
    pub workgroup_invocations: u32,
    /// Storage buffers of a kernel.
    pub storage_buffers: u32,
    /// Features that kernels use: `f16`, `subgroups 8..8`, `immediates`, `matrices 16x16x16`.
    pub features: Vec<String>,
}

/// The instance that adapters come from.
pub(super) fn instance() -> wgpu::Instance {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backends.with_env(),
        flags: wgpu::InstanceFlags::empty().with_env(),
        // A buffer that would not fit beside what others hold is refused, where the driver tells what there is.
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds {
            for_resource_creation: Some(95),
            for_device_loss: None,
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

/// Every adapter, hardware before software, in an order that stays the same.
pub(super) fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    all.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    all
}

/// Why no kernel of this crate can run on an adapter, if so.
pub(super) fn refusal(adapter: &wgpu::Adapter) -> Option<String> {
    let flags = adapter.get_downlevel_capabilities().flags;
    if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("it has no compute shaders".into());
    }
    let (have, need) = (adapter.limits(), wgpu::Limits::default());
    let checks = [
        (
            "storage buffers of a kernel",
            u64::from(have.max_storage_buffers_per_shader_stage),
            u64::from(need.max_storage_buffers_per_shader_stage),
        ),
        ("bytes of a binding", have.max_storage_buffer_binding_size, need.max_storage_buffer_binding_size),
        (
            "bytes of workgroup memory",
            u64::from(have.max_compute_workgroup_storage_size),
            u64::from(need.max_compute_workgroup_storage_size),
        ),
        (
            "invocations of a workgroup",
            u64::from(have.max_compute_invocations_per_workgroup),
            u64::from(need.max_compute_invocations_per_workgroup),
        ),
    ];
    checks
        .into_iter()
        .find(|(_, have, need)| have < need)
        .map(|(what, have, need)| format!("{what}: expected {need} or more, found {have}"))
}

/// Features that kernels know how to use, of those that an adapter has.
pub(super) fn features(adapter: &wgpu::Adapter, profile: Profile) -> wgpu::Features {
    let mut wanted = wgpu::Features::empty();
    if profile == Profile::Full {
        wanted |= wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::IMMEDIATES
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    }
    wanted & adapter.features()
}

/// Limits to ask for.
pub(super) fn limits(adapter: &wgpu::Adapter, profile: Profile) -> wgpu::Limits {
    match profile {
        Profile::Full => adapter.limits(),
        Profile::Baseline => wgpu::Limits::default(),
    }
}

/// A cooperative matrix product of f16 with f32 sums that the adapter has: m, n, k.
fn matrices(adapter: &wgpu::Adapter, features: wgpu::Features) -> Option<(u32, u32, u32)> {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16) {
        return None;
    }
    let all = adapter.cooperative_matrix_properties();
    let fits = |p: &&wgpu::CooperativeMatrixProperties| {
        p.ab_type == wgpu::CooperativeScalarType::F16
            && p.cr_type == wgpu::CooperativeScalarType::F32
            && p.m_size == p.n_size
            && p.n_size == p.k_size
    };
    all.iter().filter(fits).map(|p| (p.m_size, p.n_size, p.k_size)).max()
}

/// The driver and its version.
fn driver(info: &wgpu::AdapterInfo) -> String {
    format!("{} {}", info.driver, info.driver_info).trim().to_owned()
}

/// Capabilities of an adapter under a profile.
pub(super) fn caps(adapter: &wgpu::Adapter, profile: Profile) -> Caps {
    let (features, limits, info) = (features(adapter, profile), limits(adapter, profile), adapter.get_info());
    let subgroups = features.contains(wgpu::Features::SUBGROUP);
    Caps {
        backend: Backend::Wgpu,
        api: info.backend.to_string(),
        driver: driver(&info),
        device: info.name,
        wgpu: WgpuCaps {
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroup: if subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
            matrix: matrices(adapter, features).map_or(0, |(m, _, _)| m),
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
            max_binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            software: info.device_type == wgpu::DeviceType::Cpu,
        },
        ..Caps::default()
    }
}

/// What `ocelli devices` shows of an adapter.
pub(super) fn details(adapter: &wgpu::Adapter) -> AdapterDetails {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let have = features(adapter, Profile::Full);
    let mut list = Vec::new();
    if have.contains(wgpu::Features::SHADER_F16) {
        list.push("f16".to_owned());
    }
    if have.contains(wgpu::Features::SUBGROUP) {
        list.push(format!("subgroups {}..{}", info.subgroup_min_size, info.subgroup_max_size));
    }
    if have.contains(wgpu::Features::IMMEDIATES) {
        list.push("immediates".to_owned());
    }
    if let Some((m, n, k)) = matrices(adapter, have) {
        list.push(format!("matrices {m}x{n}x{k}"));
    }
    AdapterDetails {
        api: info.backend.to_string(),
        kind: format!("{:?}", info.device_type),
        driver: driver(&info),
        max_buffer: limits.max_buffer_size,
        max_binding: limits.max_storage_buffer_binding_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        features: list,
    }
}
