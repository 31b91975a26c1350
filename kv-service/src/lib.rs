pub mod machine;
pub mod operation;
