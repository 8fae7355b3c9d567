// JSON as the converter reads it: errors name the file, duplicate keys and deep nesting are
// refused.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mamba_edge::convert {

// Parses strict JSON. `source` names the text in errors. Throws Error on a syntax error, on a key
// that appears twice in one object, and on nesting deeper than 64.
nlohmann::json parse_json(std::string_view text, const std::string& source);

// The same for text written by Python, which spells floats that JSON lacks as the bare words NaN,
// Infinity and -Infinity. Each becomes the object {"__float__": "NaN"} (or "Infinity",
// "-Infinity"), which is also how recent transformers versions write them; json_number()
// understands it.
nlohmann::json parse_python_json(std::string_view text, const std::string& source);

// True and *value set when `json` is a number or such an object.
bool json_number(const nlohmann::json& json, double* value);

}  // namespace mamba_edge::convert
