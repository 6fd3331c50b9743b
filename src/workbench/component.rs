//! Core modules as components, for languages whose compilers know WASI's first preview and nothing of components.
//!
//! What such a module imports of WASI is answered here, and not by the usual adapter, which would ask the host for clocks,
//! files and random bytes: there are none of them. Its clock only ticks when it is asked, its random bytes are always the same,
//! what it writes goes to the log, and it has no files, no arguments and no environment.

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, GlobalType, ImportSection, MemArg, MemoryType, Module,
    TypeSection, ValType,
};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

const CONTRACT: &str = include_str!("../../plugins/wit/penstock.wit");

/// What a function of the preview does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Succeeds, and has written two zeros where its arguments say: there is nothing.
    Nothing,
    /// Succeeds.
    Done,
    /// Fails with `EBADF`: there are no files.
    NoFile,
    /// … with `ENOSYS`.
    NotThere,
    Clock,
    Random,
    Write,
    Exit,
    Poll,
}

/// The functions by name, with their parameters (`i` for 32 bits, `I` for 64). All but `proc_exit` return a number.
/// <https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md>
const PREVIEW1: [(&str, &str, Answer); 45] = [
    ("args_get", "ii", Answer::Done),
    ("args_sizes_get", "ii", Answer::Nothing),
    ("environ_get", "ii", Answer::Done),
    ("environ_sizes_get", "ii", Answer::Nothing),
    ("clock_res_get", "ii", Answer::NotThere),
    ("clock_time_get", "iIi", Answer::Clock),
    ("fd_advise", "iIIi", Answer::NoFile),
    ("fd_allocate", "iII", Answer::NoFile),
    ("fd_close", "i", Answer::NoFile),
    ("fd_datasync", "i", Answer::NoFile),
    ("fd_fdstat_get", "ii", Answer::NoFile),
    ("fd_fdstat_set_flags", "ii", Answer::NoFile),
    ("fd_fdstat_set_rights", "iII", Answer::NoFile),
    ("fd_filestat_get", "ii", Answer::NoFile),
    ("fd_filestat_set_size", "iI", Answer::NoFile),
    ("fd_filestat_set_times", "iIIi", Answer::NoFile),
    ("fd_pread", "iiiIi", Answer::NoFile),
    ("fd_prestat_get", "ii", Answer::NoFile),
    ("fd_prestat_dir_name", "iii", Answer::NoFile),
    ("fd_pwrite", "iiiIi", Answer::NoFile),
    ("fd_read", "iiii", Answer::NoFile),
    ("fd_readdir", "iiiIi", Answer::NoFile),
    ("fd_renumber", "ii", Answer::NoFile),
    ("fd_seek", "iIii", Answer::NoFile),
    ("fd_sync", "i", Answer::NoFile),
    ("fd_tell", "ii", Answer::NoFile),
    ("fd_write", "iiii", Answer::Write),
    ("path_create_directory", "iii", Answer::NoFile),
    ("path_filestat_get", "iiiii", Answer::NoFile),
    ("path_filestat_set_times", "iiiiIIi", Answer::NoFile),
    ("path_link", "iiiiiii", Answer::NoFile),
    ("path_open", "iiiiiIIii", Answer::NoFile),
    ("path_readlink", "iiiiii", Answer::NoFile),
    ("path_remove_directory", "iii", Answer::NoFile),
    ("path_rename", "iiiiii", Answer::NoFile),
    ("path_symlink", "iiiii", Answer::NoFile),
    ("path_unlink_file", "iii", Answer::NoFile),
    ("poll_oneoff", "iiii", Answer::Poll),
    ("proc_exit", "i", Answer::Exit),
    ("random_get", "ii", Answer::Random),
    ("sched_yield", "", Answer::Done),
    ("sock_accept", "iii", Answer::NoFile),
    ("sock_recv", "iiiiii", Answer::NoFile),
    ("sock_send", "iiiii", Answer::NoFile),
    ("sock_shutdown", "ii", Answer::NoFile),
];

const EBADF: i32 = 8;
const ENOSYS: i32 = 52;
/// Lines of standard output and error: as warnings, since an error is what a panic says of itself.
const WARN: i32 = 1;

/// Wraps a core module that exports the contract and imports WASI's first preview.
///
/// # Errors
/// It does not export the contract.
pub fn of_core_module(module: &[u8]) -> Result<Vec<u8>, String> {
    let said = |e: anyhow::Error| format!("{e:#}");
    let embedded = |mut module: Vec<u8>, world: &str| -> anyhow::Result<Vec<u8>> {
        let mut resolve = Resolve::default();
        let package = resolve.push_str("penstock.wit", CONTRACT)?;
        let world = resolve.select_world(&[package], Some(world))?;
        let utf8 = StringEncoding::UTF8;
        wit_component::embed_component_metadata(&mut module, &resolve, world, utf8)?;
        Ok(module)
    };
    let module = embedded(module.to_vec(), "whole").map_err(said)?;
    let adapter = embedded(adapter(), "logs").map_err(said)?;
    ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.adapter("wasi_snapshot_preview1", &adapter))
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(said)
}

/// The module that answers. It has no memory of its own: it writes into that of the module that asks.
fn adapter() -> Vec<u8> {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32; 3], []);
    let mut imports = ImportSection::new();
    let memory = MemoryType {
        minimum: 0,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    };
    imports.import("env", "memory", EntityType::Memory(memory));
    imports.import("penstock:plugin/host@0.1.0", "log", EntityType::Function(0));
    let mut globals = GlobalSection::new();
    let ticks = GlobalType {
        val_type: ValType::I64,
        mutable: true,
        shared: false,
    };
    globals.global(ticks, &ConstExpr::i64_const(1_000_000_000));
    let (mut functions, mut exports, mut code) = (
        FunctionSection::new(),
        ExportSection::new(),
        CodeSection::new(),
    );
    for (number, (name, parameters, answer)) in (1u32..).zip(PREVIEW1) {
        let kind = |c| match c {
            b'I' => ValType::I64,
            _ => ValType::I32,
        };
        let returns = (answer != Answer::Exit).then_some(ValType::I32);
        types.ty().function(parameters.bytes().map(kind), returns);
        functions.function(number);
        exports.export(name, ExportKind::Func, number);
        code.function(&body(answer));
    }
    let mut module = Module::new();
    module
        .section(&types)
        .section(&imports)
        .section(&functions)
        .section(&globals)
        .section(&exports)
        .section(&code);
    module.finish()
}

fn body(answer: Answer) -> Function {
    let at = |offset| MemArg {
        offset,
        align: 2,
        memory_index: 0,
    };
    let locals = match answer {
        // The number of the piece, and how much there was.
        Answer::Write => vec![(2, ValType::I32)],
        _ => Vec::new(),
    };
    let mut function = Function::new(locals);
    let mut code = function.instructions();
    match answer {
        Answer::Done => code.i32_const(0),
        Answer::NoFile => code.i32_const(EBADF),
        Answer::NotThere => code.i32_const(ENOSYS),
        Answer::Exit => code.unreachable(),
        Answer::Nothing => {
            for argument in [0, 1] {
                code.local_get(argument).i32_const(0).i32_store(at(0));
            }
            code.i32_const(0)
        }
        // (id, precision, where to): a microsecond a question.
        Answer::Clock => code
            .global_get(0)
            .i64_const(1_000)
            .i64_add()
            .global_set(0)
            .local_get(2)
            .global_get(0)
            .i64_store(MemArg {
                offset: 0,
                align: 3,
                memory_index: 0,
            })
            .i32_const(0),
        // (where to, how many)
        Answer::Random => code
            .local_get(0)
            .i32_const(0x5a)
            .local_get(1)
            .memory_fill(0)
            .i32_const(0),
        // (what for, events, how many, where their number goes): all of it has happened.
        Answer::Poll => code.local_get(3).local_get(2).i32_store(at(0)).i32_const(0),
        // (file, pieces, how many, where the size goes); a piece is an address and a size.
        Answer::Write => {
            let piece = |code: &mut wasm_encoder::InstructionSink<'_>, offset| {
                code.local_get(1)
                    .local_get(4)
                    .i32_const(8)
                    .i32_mul()
                    .i32_add()
                    .i32_load(at(offset));
            };
            code.block(BlockType::Empty)
                .loop_(BlockType::Empty)
                .local_get(4)
                .local_get(2)
                .i32_ge_u()
                .br_if(1)
                .i32_const(WARN);
            piece(&mut code, 0);
            piece(&mut code, 4);
            code.call(0).local_get(5);
            piece(&mut code, 4);
            code.i32_add()
                .local_set(5)
                .local_get(4)
                .i32_const(1)
                .i32_add()
                .local_set(4)
                .br(0)
                .end()
                .end()
                .local_get(3)
                .local_get(5)
                .i32_store(at(0))
                .i32_const(0)
        }
    };
    code.end();
    function
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exports_no_contract_is_told_so() {
        let names: std::collections::BTreeSet<_> = PREVIEW1.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), PREVIEW1.len());
        let error = of_core_module(&Module::new().finish()).unwrap_err();
        assert!(error.contains("penstock:plugin/transform"), "{error}");
    }
}
