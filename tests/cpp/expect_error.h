// EXPECT_ERROR(statement, kind, text): the statement throws sparsed::Error of that kind whose message contains text.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "support/error.h"

namespace sparsed {

template <class Body>
void expect_error(const Body& body, ErrorKind kind, const std::string& text, const char* file, int line) {
  try {
    body();
  } catch (const Error& error) {
    if (error.kind() != kind || std::string(error.what()).find(text) == std::string::npos) {
      ADD_FAILURE_AT(file, line) << "kind " << static_cast<int>(error.kind()) << ", message \"" << error.what()
                                 << "\"; expected kind " << static_cast<int>(kind) << ", message with \"" << text
                                 << '"';
    }
    return;
  }
  ADD_FAILURE_AT(file, line) << "no error; expected \"" << text << '"';
}

}  // namespace sparsed

#define EXPECT_ERROR(statement, kind, text) \
  ::sparsed::expect_error([&] { statement; }, ::sparsed::ErrorKind::kind, text, __FILE__, __LINE__)
