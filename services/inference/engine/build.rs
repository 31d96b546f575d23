//! Makes message types of the contract's descriptors: the .proto files are the one source.

use std::env;
use std::fs;
use std::path::PathBuf;

use prost::Message;
use prost_types::FileDescriptorSet;

const PACKAGES: [&str; 6] = [
    "inference",
    "volary.events.v1",
    "volary.values.v1",
    "volary.otlp.v1",
    "google.rpc",
    "google.protobuf",
];

fn main() {
    let contract = env::var("VOLARY_CONTRACT")
        .unwrap_or_else(|_| "../../../protos/generated/volary_contract/contract.binpb".into());
    println!("cargo:rerun-if-env-changed=VOLARY_CONTRACT");
    println!("cargo:rerun-if-changed={contract}");
    let data = fs::read(PathBuf::from(&contract))
        .unwrap_or_else(|error| panic!("{contract}: {error}; set VOLARY_CONTRACT"));
    let mut files = FileDescriptorSet::decode(&data[..]).expect("contract.binpb is no contract");
    files.file.retain(|file| PACKAGES.contains(&file.package()));
    for file in &mut files.file {
        file.service.clear();
        file.source_code_info = None;
    }
    prost_build::Config::new()
        .bytes([".inference"])
        .btree_map([".inference"])
        .boxed(".volary.events.v1.Event.payload.prediction") // twice as large as the others
        .compile_fds(files)
        .expect("the contract's descriptors make no types");
}
