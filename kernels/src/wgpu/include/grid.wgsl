// A workgroup's number in a grid that may be folded into two dimensions, see `Kernel::dispatch_linear`.
fn linear_workgroup(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}
