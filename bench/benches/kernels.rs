//! Criterion benches of the kernels that `ocelli bench kernels` times, at the same shapes and on the same operands:
//! `cargo bench -p ocelli-bench -- "step head"`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use ocelli_bench::kernels::{Cx, Tower};
use ocelli_bench::shapes::{Shape, Shapes};
use ocelli_kernels::{Backend, DeviceOptions};

fn kernels(criterion: &mut Criterion) {
    let mut cx = Cx::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU is always there");
    let tower = Shape { what: "vision tower".into(), op: "tower".into(), spec: Tower::SPEC.into() };
    let lists = Shapes::embedded().expect("the lists of the crate are tested");
    let lists = lists.iter().filter(|list| list.backend.is_none());
    for shape in lists.flat_map(|list| &list.shapes).chain([&tower]) {
        let mut group = criterion.benchmark_group(&shape.what);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_secs(1));
        let (ready, notes) = cx.prepare(shape, true).unwrap_or_else(|error| panic!("{error}"));
        for note in notes {
            println!("skipped: {note}");
        }
        for mut kernel in ready {
            // Products are counted in operations, what streams in bytes.
            let throughput = if kernel.cost.flops > 16 * kernel.cost.bytes() {
                Throughput::Elements(kernel.cost.flops)
            } else {
                Throughput::Bytes(kernel.cost.bytes())
            };
            group.throughput(throughput);
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(&kernel.variant), |bencher| {
                bencher.iter(|| {
                    turn += 1;
                    (kernel.run)(cx.target(), turn).unwrap_or_else(|error| panic!("{error}"));
                });
            });
        }
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    kernels(&mut criterion);
    criterion.final_summary();
}
