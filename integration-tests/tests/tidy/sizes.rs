//! Sizes: a file has at most 500 lines, a function at most 70.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines of a file, tests included.
pub(crate) const FILE_LINES_MAX: usize = 500;

/// Lines of a function, from its signature to its closing brace.
pub(crate) const FUNCTION_LINES_MAX: usize = 70;

/// The functions of a file that are too long: line, name and length.
pub(crate) fn long_functions(text: &str) -> Vec<(usize, String, usize)> {
    let syntax = syn::parse_file(text).expect("a source file is Rust");
    let mut reader = Reader(Vec::new());
    reader.visit_file(&syntax);
    reader.0
}

struct Reader(Vec<(usize, String, usize)>);

impl Reader {
    fn measure(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (start, end) = (signature.span().start().line, block.span().end().line);
        let lines = end + 1 - start;
        if lines > FUNCTION_LINES_MAX {
            self.0.push((start, signature.ident.to_string(), lines));
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.measure(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}
